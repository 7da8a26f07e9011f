"""FP8 products for the encoder's linear layers in training, by torchao. Experimental.

torchao replaces each linear layer by one that computes its three products (output, gradient of the
input, gradient of the weight) in 8 bits, with one scale per tensor, computed at that moment. The
parameters and their names stay the same. The casts only pay off inside a compiled layer. Neither
speed nor accuracy of a whole run has been measured.
"""

from __future__ import annotations

from torch import nn


def use_fp8(layers: nn.Module, **options: object) -> int:
    """Convert the linear layers of an encoder's layers in place.

    The number of tokens must be a multiple of 16, which ``data.pack_tokens`` ensures.

    Args:
        layers: layers in bfloat16 or to be cast to it; their parameters stay the same objects.
        options: options of torchao's ``Float8LinearConfig``.

    Returns:
        The number of converted layers.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(layers, config=Float8LinearConfig(**options))
    return sum(
        isinstance(module, nn.Linear) and type(module) is not nn.Linear
        for module in layers.modules()
    )
