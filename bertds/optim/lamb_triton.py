"""LAMB's two passes over a partition in GPU memory, as Triton kernels.

Pass 1 reads g, m, v and w and writes m and v. Pass 2 reads m, v and w, recomputes u and writes w.
That is 10 streams through memory; Adam needs 7, and a sequence of torch's operations 18. Between
the passes a small kernel adds up the blocks' sums of squares per tensor, in float64.

A block is the part of a piece that is in one tile of ``BLOCK`` elements of the partition. It never
crosses the edge of a tensor, and padding (which no piece covers) is never touched. There are no
atomic additions: the same gradients give the same bits in every run.

``TRITON_INTERPRET=1``, set before Triton is imported, runs the kernels on a CPU (for tests).
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from bertds.optim.lamb_coefficients import StepNumbers
from bertds.optim.partition import Partition

BLOCK = 2048
"""Elements per block; a power of two. Its float32 sum of squares is exact to about 1e-7."""
WARPS = 8
"""Warps per block: 8 elements per thread and, on sm_90, 64 registers: four blocks run at a time."""
CHUNK = 1024
"""Partial sums that the reduction reads per iteration."""


@triton.jit
def _scaled_update(w, m, v, first, second, eps, decay):
    # Rounded as on a CPU; Triton's default square root and division are approximate.
    return tl.div_rn(m * first, tl.sqrt_rn(v * second) + eps) + decay * w


@triton.jit
def _new_moments(g, m, v, beta1, rest1, beta2, rest2):
    return beta1 * m + rest1 * g, beta2 * v + rest2 * g * g


# Learning rate and bias correction change in every step. As annotated scalars they are plain
# arguments of the compiled kernel. A full block is loaded without a mask; only such loads become
# 16-byte loads.
@triton.jit
def update_moments(
    weights,
    gradients,
    exp_avg,
    exp_avg_sq,
    blocks,
    decayed,
    block_sums,
    number_of_blocks: tl.int32,
    beta1: tl.float32,
    rest1: tl.float32,
    beta2: tl.float32,
    rest2: tl.float32,
    first: tl.float32,
    second: tl.float32,
    eps: tl.float32,
    decay: tl.float32,
    BLOCK: tl.constexpr,
):
    """Pass 1: one program per block updates m and v, and stores its sums of w*w and u*u."""
    # A row of `blocks`: tile, first and last + 1 element within it, tensor number.
    block = tl.program_id(0)
    tile = tl.load(blocks + 4 * block).to(tl.int64)
    low = tl.load(blocks + 4 * block + 1)
    high = tl.load(blocks + 4 * block + 2)
    block_decay = decay * tl.load(decayed + tl.load(blocks + 4 * block + 3))
    lane = tl.arange(0, BLOCK)
    at = tile * BLOCK + lane
    if high - low == BLOCK:
        g = tl.load(gradients + at).to(tl.float32)
        w = tl.load(weights + at)
        m, v = _new_moments(
            g, tl.load(exp_avg + at), tl.load(exp_avg_sq + at), beta1, rest1, beta2, rest2
        )
        tl.store(exp_avg + at, m)
        tl.store(exp_avg_sq + at, v)
        u = _scaled_update(w, m, v, first, second, eps, block_decay)
    else:
        inside = (lane >= low) & (lane < high)
        g = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weights + at, mask=inside, other=0.0)
        m, v = _new_moments(
            g,
            tl.load(exp_avg + at, mask=inside, other=0.0),
            tl.load(exp_avg_sq + at, mask=inside, other=0.0),
            beta1,
            rest1,
            beta2,
            rest2,
        )
        tl.store(exp_avg + at, m, mask=inside)
        tl.store(exp_avg_sq + at, v, mask=inside)
        # Outside the block u would be 0 / eps, which is NaN if eps is 0.
        u = tl.where(inside, _scaled_update(w, m, v, first, second, eps, block_decay), 0.0)
    tl.store(block_sums + block, tl.sum(w * w))
    tl.store(block_sums + number_of_blocks + block, tl.sum(u * u))


@triton.jit
def sum_blocks(
    block_sums,
    first_blocks,
    sums,
    number_of_blocks: tl.int32,
    number_of_tensors: tl.int32,
    CHUNK: tl.constexpr,
):
    """Add up the blocks of each tensor in a fixed order; one program per tensor and kind of sum."""
    tensor, row = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(first_blocks + tensor), tl.load(first_blocks + tensor + 1)
    total = tl.zeros([CHUNK], tl.float64)
    for low in range(start, end, CHUNK):
        block = low + tl.arange(0, CHUNK)
        part = tl.load(block_sums + row * number_of_blocks + block, mask=block < end, other=0.0)
        total += part.to(tl.float64)
    tl.store(sums + row * number_of_tensors + tensor, tl.sum(total))


@triton.jit
def apply_update(
    weights,
    exp_avg,
    exp_avg_sq,
    blocks,
    decayed,
    ratios,
    first: tl.float32,
    second: tl.float32,
    eps: tl.float32,
    decay: tl.float32,
    step_size: tl.float64,
    BLOCK: tl.constexpr,
):
    """Pass 2: w <- w - step size * ratio * u, with u recomputed."""
    block = tl.program_id(0)
    tile = tl.load(blocks + 4 * block).to(tl.int64)
    low = tl.load(blocks + 4 * block + 1)
    high = tl.load(blocks + 4 * block + 2)
    tensor = tl.load(blocks + 4 * block + 3)
    block_decay = decay * tl.load(decayed + tensor)
    factor = (tl.load(ratios + tensor) * step_size).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    at = tile * BLOCK + lane
    if high - low == BLOCK:
        w, m, v = tl.load(weights + at), tl.load(exp_avg + at), tl.load(exp_avg_sq + at)
        u = _scaled_update(w, m, v, first, second, eps, block_decay)
        tl.store(weights + at, w - factor * u)
    else:
        inside = (lane >= low) & (lane < high)
        w = tl.load(weights + at, mask=inside, other=0.0)
        m = tl.load(exp_avg + at, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
        u = _scaled_update(w, m, v, first, second, eps, block_decay)
        tl.store(weights + at, w - factor * u, mask=inside)


def cut_into_blocks(partition: Partition, index: dict[str, int]) -> np.ndarray:
    """Return int32 [blocks, 4]: tile, first and last + 1 element within it, tensor number.

    The blocks of a tensor are consecutive rows, ordered by position.
    """
    rows = []
    # A piece may begin and end in the middle of a tile.
    for piece in partition.slices:
        end = piece.offset + piece.length
        tiles = np.arange(piece.offset // BLOCK, (end - 1) // BLOCK + 1, dtype=np.int64)
        low = np.maximum(piece.offset - tiles * BLOCK, 0)
        high = np.minimum(end - tiles * BLOCK, BLOCK)
        rows.append(np.stack([tiles, low, high, np.full_like(tiles, index[piece.name])], axis=1))
    table = np.concatenate(rows) if rows else np.empty((0, 4), np.int64)
    return table[np.argsort(table[:, 3], kind="stable")].astype(np.int32)


class TritonLamb:
    """LAMB's arithmetic on one partition; see :class:`bertds.optim.lamb_cpu.CpuLamb`."""

    def __init__(
        self,
        partition: Partition,
        index: dict[str, int],
        decayed: list[bool],
    ) -> None:
        self.partition = partition
        device = partition.tensor.device
        table = cut_into_blocks(partition, index)
        # Row of each tensor's first block, for the sum per tensor; one more entry ends the last
        # tensor.
        first_blocks = np.searchsorted(table[:, 3], np.arange(len(index) + 1)).astype(np.int32)
        self._blocks = torch.from_numpy(table).to(device)
        self._first_blocks = torch.from_numpy(first_blocks).to(device)
        self._decayed = torch.tensor(decayed, dtype=torch.float32, device=device)
        self._block_sums = torch.zeros(2, len(table), device=device)
        self._number_of_tensors = len(index)

    def update_moments(
        self, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, numbers: StepNumbers
    ) -> torch.Tensor:
        """Pass 1. Returns float64 [2, tensors]: this partition's sums of w*w and u*u."""
        self._moments = m.view(-1), v.view(-1)
        w, g = self.partition.flat(), gradient.detach().reshape(-1)
        count = len(self._blocks)
        sums = torch.zeros(2, self._number_of_tensors, dtype=torch.float64, device=w.device)
        if not count:
            return sums
        update_moments[(count,)](
            w,
            g,
            *self._moments,
            self._blocks,
            self._decayed,
            self._block_sums,
            count,
            numbers.beta1,
            1.0 - numbers.beta1,
            numbers.beta2,
            1.0 - numbers.beta2,
            numbers.first,
            numbers.second,
            numbers.eps,
            numbers.decay,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
        # The second kernel adds up the blocks of each tensor in a fixed order.
        tensors = self._number_of_tensors
        sum_blocks[(tensors, 2)](
            self._block_sums, self._first_blocks, sums, count, tensors, CHUNK=CHUNK
        )
        return sums

    def apply(self, ratios: torch.Tensor, numbers: StepNumbers) -> None:
        """Pass 2: w <- w - step size * ratio * u."""
        count = len(self._blocks)
        if not count:
            return
        w = self.partition.flat()
        apply_update[(count,)](
            w,
            *self._moments,
            self._blocks,
            self._decayed,
            ratios.to(w.device, non_blocking=True),
            numbers.first,
            numbers.second,
            numbers.eps,
            numbers.decay,
            numbers.step_size,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
