"""FP8 products for the linear layers of the encoder, through torch's own scaled product.

    forward   y  = x  W^T    x and W in e4m3
    backward  dx = dy W      dy in e5m2, W in e4m3
              dW = dy^T x    dy in e5m2, x in e4m3

Each tensor is brought to its format's range by one scale, taken from the tensor itself at that
moment (no history, so nothing to save); sums are float32, results bfloat16. Weights, moments and
gradients keep the precision that the JSON gives them: only what enters a product is rounded.
Embeddings, attention's own products, LayerNorm and the heads stay as they are, and so does
everything outside training: a score is that of the weights as they will be exported.

On a GPU the products are ``torch._scaled_mm``. Elsewhere the rounded values are multiplied in
float32, the same numbers but for the order of the sums, so that a run can be tried without one.

Sizes: T tokens, I columns of the input, O columns of the output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bertds.model.attention import SelfAttention
from bertds.model.encoder import Encoder

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""The GPU's product takes inner sizes that are multiples of this."""
LEAST = 1e-20
"""The largest magnitude of a tensor is taken to be at least this: a tensor of zeros has a scale."""


def scale_of(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the float32 factor from ``values`` to the whole range of ``dtype``.

    Stays on the device. What is not finite makes the factor, and so the result, not finite.
    """
    return torch.finfo(dtype).max / values.abs().amax().float().clamp_min(LEAST)


def rounded(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``values * scale`` in an 8-bit format."""
    return (values.float() * scale).to(dtype)


def scaled_product(
    left: Tensor, right_T: Tensor, left_scale: Tensor, right_scale: Tensor, *, precise: bool
) -> Tensor:
    """Return ``left @ right_T.T``, both scales taken out again, in bfloat16.

    Args:
        left: 8 bits [M, K], row by row.
        right_T: 8 bits [N, K], row by row.
        left_scale: what ``left`` was multiplied with, float32 scalar.
        right_scale: what ``right_T`` was multiplied with.
        precise: sum in full float32 on a GPU too, as gradients need it.
    """
    if left.is_cuda:
        return torch._scaled_mm(
            left,
            right_T.t(),
            scale_a=left_scale.reciprocal(),
            scale_b=right_scale.reciprocal(),
            out_dtype=torch.bfloat16,
            use_fast_accum=not precise,
        )
    # Both formats' values are exact in float32. torch's own loop for CPUs takes far longer.
    product = left.float() @ right_T.float().t()
    return (product * left_scale.reciprocal() * right_scale.reciprocal()).to(torch.bfloat16)


class _Fp8Product(torch.autograd.Function):
    """``input @ weight.T``; keeps the input in 8 bits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input_TI: Tensor, weight_OI: Tensor) -> Tensor:
        input_scale, weight_scale = scale_of(input_TI, FORWARD), scale_of(weight_OI, FORWARD)
        input8_TI = rounded(input_TI, input_scale, FORWARD)
        weight8_OI = rounded(weight_OI, weight_scale, FORWARD)
        # The weight as it is: a rounded copy of all layers would take memory, and under ZeRO-3
        # the whole weight is there only while the layer is at work.
        ctx.save_for_backward(input8_TI, input_scale, weight_OI, weight_scale)
        return scaled_product(input8_TI, weight8_OI, input_scale, weight_scale, precise=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor, Tensor]:
        input8_TI, input_scale, weight_OI, weight_scale = ctx.saved_tensors
        grad_scale = scale_of(grad_TO, BACKWARD)
        grad8_TO = rounded(grad_TO, grad_scale, BACKWARD)
        weight8_IO = rounded(weight_OI, weight_scale, FORWARD).t().contiguous()
        input_grad_TI = scaled_product(grad8_TO, weight8_IO, grad_scale, weight_scale, precise=True)
        weight_grad_OI = scaled_product(
            grad8_TO.t().contiguous(),
            input8_TI.t().contiguous(),
            grad_scale,
            input_scale,
            precise=True,
        )
        return input_grad_TI, weight_grad_OI


@torch.compiler.allow_in_graph  # torch 2.13 cannot look into two such functions of one graph
def _product(input_TI: Tensor, weight_OI: Tensor) -> Tensor:
    output_TO: Tensor = _Fp8Product.apply(input_TI, weight_OI)
    return output_TO


def fp8_linear(input_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Return ``input @ weight.T + bias`` with products in FP8, [T, O].

    Args:
        input_TI: bfloat16; any number of tokens.
        weight_OI: bfloat16, both sizes multiples of 16.
        bias_O: bfloat16.
    """
    tokens = input_TI.shape[0]
    # The gradient of the weight sums over tokens, whose number must be a multiple too.
    # While compiling no question is asked, for each answer would be a graph of its own.
    if torch.compiler.is_compiling() or tokens % MULTIPLE:
        input_TI = F.pad(input_TI, (0, 0, 0, -tokens % MULTIPLE))
    return _product(input_TI, weight_OI)[:tokens] + bias_O


class Fp8Linear(nn.Linear):
    """A linear layer whose products are FP8 while training."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [T, O]."""
        product = fp8_linear if self.training else F.linear
        return product(input, self.weight, self.bias)


def use_fp8(encoder: Encoder) -> int:
    """Let an encoder's linear layers multiply in FP8; returns how many do.

    Parameters and their names stay the same.
    """
    count = 0
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = Fp8Linear
            count += 1
        if isinstance(module, SelfAttention):
            module.product = fp8_linear
    return count
