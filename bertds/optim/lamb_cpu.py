"""LAMB's two passes over a partition in CPU memory, as compiled loops.

Written as a sequence of torch operations, a step takes 4-6 times as long as torch's fused AdamW,
because each operation reads and writes memory again. These loops move 10 streams (pass 1 reads
w, g, m, v and writes m, v; pass 2 reads w, m, v and writes w); Adam needs 7.

A piece is divided into blocks of fixed size, and the blocks' sums are added in a fixed order. So
the result does not depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from bertds.optim.lamb_coefficients import StepNumbers
from bertds.optim.partition import Partition
from bertds.system.numba_jit import compiled

BLOCK = 2048
"""Elements per block: its float32 sum of squares is then exact to 1e-6, whatever the values.

Blocks of 16,384 are wrong by up to 7e-6 where all values are equal; float64 sums take 18% longer.
"""

# Sums may be reordered within a block, which allows vector registers. Otherwise IEEE arithmetic is
# kept, so NaN and infinity are handled correctly.
_COMPILE: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "nsz", "contract"},
}


@compiled(**_COMPILE)
def _update_moments(  # type: ignore[no-untyped-def]
    w, g, m, v, starts, ends, decay, scalars, sums, first_block, last_block
):
    # Updates m and v, and computes u and both sums of squares, block by block.
    beta1, rest1, beta2, rest2, first, second, eps = scalars
    for block in range(first_block, last_block):
        # Slices show the compiler that indices are not negative, so that it can vectorize.
        start, end = starts[block], ends[block]
        w_block, g_block = w[start:end], g[start:end]
        m_block, v_block = m[start:end], v[start:end]
        block_decay = decay[block]
        weight_sum = np.float32(0)
        update_sum = np.float32(0)
        for i in range(w_block.size):
            gradient = g_block[i]
            weight = w_block[i]
            m_new = beta1 * m_block[i] + rest1 * gradient
            v_new = beta2 * v_block[i] + rest2 * gradient * gradient
            m_block[i] = m_new
            v_block[i] = v_new
            update = (m_new * first) / (np.sqrt(v_new * second) + eps) + block_decay * weight
            weight_sum += weight * weight
            update_sum += update * update
        sums[0, block] = weight_sum
        sums[1, block] = update_sum


@compiled(**_COMPILE)
def _apply(  # type: ignore[no-untyped-def]
    w, m, v, starts, ends, decay, scalars, factors, first_block, last_block
):
    _, _, _, _, first, second, eps = scalars
    for block in range(first_block, last_block):
        start, end = starts[block], ends[block]
        w_block, m_block, v_block = w[start:end], m[start:end], v[start:end]
        block_decay, factor = decay[block], factors[block]
        for i in range(w_block.size):
            weight = w_block[i]
            update = (m_block[i] * first) / (np.sqrt(v_block[i] * second) + eps)
            w_block[i] = weight - factor * (update + block_decay * weight)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lamb")


def _run(function: Callable[..., None], blocks: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel over all blocks, on as many threads as torch uses."""
    # Fewer than 8 blocks per thread are not worth a thread.
    threads = min(torch.get_num_threads(), max(1, blocks // 8))
    if threads == 1:
        function(*arguments, 0, blocks)
        return
    cuts = [blocks * part // threads for part in range(threads + 1)]
    pool = _pool(torch.get_num_threads())
    waiting = [pool.submit(function, *arguments, a, b) for a, b in itertools.pairwise(cuts)]
    for task in waiting:
        task.result()


class CpuLamb:
    """LAMB's arithmetic on one partition.

    Args:
        partition: the flat weights and the tensor pieces in them.
        index: the number of each tensor in the vectors of sums and ratios.
        decayed: per tensor, whether weight decay applies.
    """

    def __init__(
        self,
        partition: Partition,
        index: dict[str, int],
        decayed: list[bool],
    ) -> None:
        self.partition = partition
        starts, ends, tensors = [], [], []
        for piece in partition.slices:
            for start in range(0, piece.length, BLOCK):
                starts.append(piece.offset + start)
                ends.append(piece.offset + min(start + BLOCK, piece.length))
                tensors.append(index[piece.name])
        self._starts = np.array(starts, np.int64)
        self._ends = np.array(ends, np.int64)
        self._tensors = np.array(tensors, np.int64)
        self._decayed = np.array([decayed[t] for t in tensors], np.float32)
        self._block_sums = np.zeros((2, len(tensors)))
        self._number_of_tensors = len(index)

    def update_moments(
        self, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, numbers: StepNumbers
    ) -> torch.Tensor:
        """Pass 1.

        Returns:
            float64 [2, tensors]: this partition's share of the sums of w*w and u*u.
        """
        # Views: the kernels update moments and weights in place.
        self._m, self._v = m.view(-1).numpy(), v.view(-1).numpy()
        self._w = self.partition.flat().numpy()
        self._scalars = tuple(
            np.float32(x)
            for x in (
                *(numbers.beta1, 1.0 - numbers.beta1, numbers.beta2, 1.0 - numbers.beta2),
                *(numbers.first, numbers.second, numbers.eps),
            )
        )
        self._decay = self._decayed * np.float32(numbers.decay)
        sums = np.zeros((2, self._number_of_tensors))
        blocks = len(self._tensors)
        if blocks:
            g = gradient.detach().reshape(-1).numpy()
            arrays = (self._w, g, self._m, self._v, self._starts, self._ends, self._decay)
            _run(_update_moments, blocks, (*arrays, self._scalars, self._block_sums))
            # A tensor's blocks are added in the order of the table.
            for row, blocks_of_row in zip(sums, self._block_sums, strict=True):
                np.add.at(row, self._tensors, blocks_of_row)
        return torch.from_numpy(sums)

    def apply(self, ratios: torch.Tensor, numbers: StepNumbers) -> None:
        """Pass 2: w <- w - step size * ratio * u."""
        blocks = len(self._tensors)
        if not blocks:
            return
        factors = (ratios.cpu().numpy()[self._tensors] * numbers.step_size).astype(np.float32)
        arrays = (self._w, self._m, self._v, self._starts, self._ends, self._decay)
        _run(_apply, blocks, (*arrays, self._scalars, factors))
