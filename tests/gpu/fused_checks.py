"""What must hold of the kernels of fused layers with dropout; part of ``checks.py``.

Which weights and elements a kernel drops is read from its output, and compared with its gradients.
The formula behind the masks is not repeated here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.attention_checks import half

if TYPE_CHECKING:
    from bertds.model.kernels.long_rows import Attended

P = 0.1
HEADS, WIDTH = 2, 64
LIMIT = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
"""How far results may be from those in float32, relative to their norm."""


def kernels_run(device: str) -> bool:
    """Whether Triton's kernels run there: on a CPU only in its interpreter."""
    return device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def assert_close(found: Tensor, want: Tensor, what: str) -> None:
    """Compare with results in float32, computed from the same rounded values."""
    apart = float((found.float() - want).norm() / want.norm())
    assert apart < LIMIT[found.dtype], f"{what}: {apart:.1e} apart"


def assert_rate(dropped: Tensor, what: str) -> None:
    """Compare the share of what was dropped with ``P``."""
    deviation = (P * (1 - P) / dropped.numel()) ** 0.5
    rate = float(dropped.float().mean())
    assert abs(rate - P) < 5 * deviation, f"{what}: {rate:.4f} were dropped instead of {P}"


def fused_attention_has_one_mask_in_both_directions(device: str, folder: Path) -> None:
    """The mask of short and long rows: its rate, its keys, and that the gradients are its own."""
    if not kernels_run(device):
        return
    from bertds.model.kernels import long_rows, short_rows
    from bertds.model.kernels.add_norm import draw_keys

    on_gpu = device == "cuda"  # the interpreter is slow
    kinds = [(False, [300, 131, 64] if on_gpu else [70, 10])]
    if short_rows.is_large_enough(torch.device(device)):
        kinds.append((True, [128, 90, 17] if on_gpu else [40, 17]))
    for short, lengths in kinds:
        starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        others = (starts, max(lengths), P)
        torch.manual_seed(5)
        keys, other_keys = draw_keys(2, torch.device(device))

        def forward(
            qkv: Tensor,
            keys: Tensor = keys,
            short: bool = short,
            others: tuple[Tensor, int, float] = others,
        ) -> tuple[Tensor, Attended | None]:
            if short:
                return short_rows.attend_short_rows(qkv, *others, keys), None
            attended = long_rows.attend_long_rows(qkv, *others, keys)
            return attended.output, attended

        mask = mask_of(forward, lengths, device)
        other_mask = mask_of(functools.partial(forward, keys=other_keys), lengths, device)
        inside = torch.arange(max(lengths), device=device) < row_lengths(lengths, device)[:, None]
        dropped, other = ((each == 0).transpose(0, 1)[:, inside] for each in (mask, other_mask))
        assert_rate(dropped, f"rows of {lengths}")
        # Two heads, and two draws, differ as independent ones do.
        for one in (dropped[1], other[0]):
            both = float((dropped[0] & one).float().mean())
            deviation = (P**2 * (1 - P**2) / one.numel()) ** 0.5
            assert abs(both - P**2) < 5 * deviation, f"{both:.4f} dropped in both"

        qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH, device=device).to(half(device))
        upstream = torch.randn(sum(lengths), HEADS, WIDTH, device=device).to(half(device))
        output, attended = forward(qkv)
        if attended is None:
            gradient, _ = short_rows.attend_short_rows_backward(upstream, qkv, *others, keys)
        else:
            gradient, _ = long_rows.attend_long_rows_backward(
                upstream, qkv, attended, *others, keys
            )
        want_output, want_gradient = softmax_attention(qkv, upstream, lengths, mask)
        assert_close(output, want_output, f"output of rows of {lengths}")
        assert_close(gradient, want_gradient, f"gradient of rows of {lengths}")


def row_lengths(lengths: list[int], device: str) -> Tensor:
    """Return the length of each token's row, [T]."""
    return torch.tensor(lengths).repeat_interleave(torch.tensor(lengths)).to(device)


def mask_of(
    forward: Callable[[Tensor], tuple[Tensor, Attended | None]], lengths: list[int], device: str
) -> Tensor:
    """Float32 [T, heads, longest row]: 0, or the factor of what is kept.

    Scores are equal. Values are the columns of a unit matrix, as many at a time as a head is wide.
    """
    place = torch.cat([torch.arange(length) for length in lengths]).to(device)
    columns = []
    for low in range(0, max(lengths), WIDTH):
        qkv = torch.zeros(len(place), 3, HEADS, WIDTH, device=device, dtype=half(device))
        here = (place >= low) & (place < low + WIDTH)
        qkv[here, 2] = F.one_hot(place[here] - low, WIDTH).to(qkv.dtype)[:, None]
        columns.append(forward(qkv)[0].float())
    weights = torch.cat(columns, -1)[..., : max(lengths)]
    factors = weights * row_lengths(lengths, device)[:, None, None]
    kept = factors[weights > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - P)), rtol=1e-2, atol=0)
    return (weights > 0).float() / (1 - P)


def softmax_attention(
    qkv: Tensor, upstream: Tensor, lengths: list[int], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and gradient by torch's operators, row by row, in float32."""
    qkv = qkv.float().requires_grad_()
    rows = []
    for row, factors in zip(qkv.split(lengths), mask.split(lengths), strict=True):
        query, key, value = row.transpose(0, 2).unbind(1)  # [heads, tokens, width]
        weights = (query @ key.mT / WIDTH**0.5).softmax(-1)
        weights = weights * factors.transpose(0, 1)[..., : len(row)]
        rows.append((weights @ value).transpose(0, 1))
    output = torch.cat(rows)
    output.backward(upstream.float())
    assert qkv.grad is not None
    return output.detach(), qkv.grad


def fused_sums_have_one_mask_in_both_directions(device: str, folder: Path) -> None:
    """Dropout, residual sum and LayerNorm in one kernel: the mask's rate, output, gradients."""
    if not kernels_run(device):
        return
    from bertds.model.kernels.add_norm import add_norm, add_norm_backward, draw_keys

    torch.manual_seed(5)
    [keys] = draw_keys(1, torch.device(device))
    shape = (2000, 768) if device == "cuda" else (40, 768)
    dense, residual, upstream = (
        torch.randn(shape, device=device).to(half(device)) for _ in range(3)
    )
    gamma, beta = (torch.randn(shape[1], device=device).to(half(device)) for _ in range(2))
    ones, zeros = torch.ones_like(dense), torch.zeros_like(dense)
    _, summed, _ = add_norm(ones, zeros, gamma, beta, 1e-12, P, keys)
    kept = (summed != 0).float()
    assert_rate(kept == 0, "hidden dropout")
    torch.testing.assert_close(summed.float(), kept / (1 - P), rtol=1e-2, atol=0)

    tensors = [t.float().requires_grad_() for t in (dense, residual, gamma, beta)]
    total = tensors[0] * kept / (1 - P) + tensors[1]
    want = F.layer_norm(total, shape[1:], tensors[2], tensors[3], 1e-12)
    want.backward(upstream.float())
    output, summed, statistics = add_norm(dense.clone(), residual, gamma, beta, 1e-12, P, keys)
    assert_close(output, want.detach(), "output")
    found = add_norm_backward(upstream, summed, statistics, gamma, P, keys)
    grad_residual, grad_dense, sums = found
    grads = [tensor.grad for tensor in tensors]
    assert_close(grad_dense, grads[0], "gradient")
    assert_close(grad_residual, grads[1], "gradient of the residual")
    bias_grad = grads[0].sum(0)
    for ours, wanted in zip(sums.sum(0).chunk(3), (grads[2], grads[3], bias_grad), strict=True):
        assert_close(ours.to(half(device)), wanted, "gradient of a vector")
