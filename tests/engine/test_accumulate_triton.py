"""The kernel that adds gradients to their sums, in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch

triton = pytest.importorskip("triton")

from bertds.engine.accumulate_triton import BLOCK, Accumulator  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1"
)

SHAPES = [(4,), (5000,), (2, BLOCK), (1,), (7, 13), (3, 5)]


@pytest.mark.parametrize("gap", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_added_to_overwritten_or_left(dtype, gap) -> None:
    """Present and absent gradients, fresh and old sums; nothing around them is touched."""
    torch.manual_seed(0)
    flat = torch.randn(20_000)
    sums, start = [], gap
    for shape in SHAPES:
        sums.append(flat[start : start + math.prod(shape)].view(shape))
        start += math.prod(shape)
    tail = flat[start:].clone()
    accumulator = Accumulator(sums)
    gradients: list[torch.Tensor | None] = [torch.randn(shape).to(dtype) for shape in SHAPES]
    gradients[2] = torch.randn(BLOCK, 2).to(dtype).t()  # not contiguous
    gradients[3] = gradients[4] = None
    fresh = [True, False, False, True, False, True]
    before = [total.clone() for total in sums]
    accumulator.add(gradients, fresh)
    for total, old, gradient, new in zip(sums, before, gradients, fresh, strict=True):
        want = torch.zeros_like(old) if new else old
        assert torch.equal(total, want if gradient is None else want + gradient.float())
    assert torch.equal(flat[start:], tail)


def test_an_unfinished_sum_is_replaced() -> None:
    """After a step that was not made, not even a NaN is left."""
    total = torch.full((BLOCK + 3,), torch.nan)
    Accumulator([total]).add([torch.ones(BLOCK + 3).bfloat16()], [True])
    assert torch.equal(total, torch.ones(BLOCK + 3))
