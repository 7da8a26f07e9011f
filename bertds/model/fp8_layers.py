"""FP8 products for the encoder's linear layers while training, by torchao. Experimental.

torchao swaps each linear layer for one whose three products (output, gradient of the input,
gradient of the weight) are made in 8 bits, with one scale per tensor taken at that moment;
parameters and their names stay the same. The casts are worth their time only inside a compiled
layer. Neither speed nor accuracy of a whole run has been measured.
"""

from __future__ import annotations

from torch import nn


def use_fp8(layers: nn.Module, **options: object) -> int:
    """Convert the linear layers of an encoder's layers in place.

    The number of tokens must be a multiple of 16, as ``data.pack_tokens`` makes it.

    Args:
        layers: bfloat16 or to be cast to it; its parameters stay the same objects.
        options: for torchao's ``Float8LinearConfig``.

    Returns:
        How many layers were converted.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(layers, config=Float8LinearConfig(**options))
    return sum(
        isinstance(module, nn.Linear) and type(module) is not nn.Linear
        for module in layers.modules()
    )
