"""How long parts of a step take on the device, found without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
        """Count a block."""
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

    def take(self) -> float:
        """Return the seconds since the last call; what a GPU has not finished comes next time."""
        while self._pending and self._pending[0][1].query():
            first, last = self._pending.popleft()
            self._seconds += first.elapsed_time(last) / 1000.0
        seconds, self._seconds = self._seconds, 0.0
        return seconds
