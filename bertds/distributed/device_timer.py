"""Measures how long parts of a step take on the device, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

KEPT = 256
"""The maximum number of finished blocks that a clock keeps if it is not read."""


@dataclass(frozen=True, slots=True)
class Lap:
    """The time that a clock measured between two cuts; see :meth:`DeviceClock.cut`."""

    counted: float
    pending: list[tuple[Any, Any]]

    def seconds(self) -> float:
        """Return the seconds; waits for the GPU if it has not finished them."""
        if self.pending:
            self.pending[-1][1].synchronize()
        return self.counted + sum(first.elapsed_time(last) for first, last in self.pending) / 1000.0


class DeviceClock:
    """Adds up the seconds of ``timed`` blocks: by the clock on a CPU, by events on a GPU.

    Args:
        device: where the blocks' work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure a block."""
        if not self._on_gpu:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._pending.append((first, last))
        if len(self._pending) > KEPT:  # with one process, no clock is ever read
            self._count_finished()

    def take(self) -> float:
        """Return the seconds since the last call; blocks that a GPU still runs count next time."""
        self._count_finished()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def cut(self) -> Lap:
        """Return the time since the last call, to be read later, without waiting."""
        lap = Lap(self._seconds, list(self._pending))
        self._seconds = 0.0
        self._pending.clear()
        return lap

    def _count_finished(self) -> None:
        while self._pending and self._pending[0][1].query():
            first, last = self._pending.popleft()
            self._seconds += first.elapsed_time(last) / 1000.0
