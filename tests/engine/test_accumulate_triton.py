"""The kernel that adds gradients to their sums, in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch

triton = pytest.importorskip("triton")

from bertds.engine import accumulate_triton  # noqa: E402
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


@pytest.mark.parametrize(
    ("sums_gap", "gradient_gap", "aligned"),
    [(0, 0, True), (4, 8, True), (1, 0, False), (0, 1, False), (0, None, True)],
)
def test_wide_loads_need_addresses_for_them(sums_gap, gradient_gap, aligned, monkeypatch) -> None:
    """A GPU stops at a 16-byte load from another address; the interpreter does not."""
    asked: list[bool] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]):
            return lambda *tensors, ALIGNED, **others: asked.append(ALIGNED)

    monkeypatch.setattr(accumulate_triton, "accumulate", Kernel())
    sums = [torch.zeros(16), torch.zeros(16)[sums_gap:]]
    gradients = [None, None]
    if gradient_gap is not None:
        gradients = [torch.zeros(32).bfloat16()[gradient_gap:], torch.zeros(16).bfloat16()]
    Accumulator(sums).add(gradients, [True, False])
    assert asked == [aligned]


def test_an_unfinished_sum_is_replaced() -> None:
    """After a step that was not made, not even a NaN is left."""
    total = torch.full((BLOCK + 3,), torch.nan)
    Accumulator([total]).add([torch.ones(BLOCK + 3).bfloat16()], [True])
    assert torch.equal(total, torch.ones(BLOCK + 3))
