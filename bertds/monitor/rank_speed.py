"""Finds ranks that are slower than the others: a hot GPU, a busy machine, a slow network link.

All ranks wait for the slowest one in each step. So each rank's own work is timed: the forward pass,
per real token, because rows have different lengths. (Backward passes include the reduction of the
gradients, in which a fast rank waits for a slow one.) At ZeRO stage 3 the forward pass waits for
the others too, and only the check at the start distinguishes the ranks.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from statistics import median, median_low
from typing import Any, Protocol

import torch

from bertds.distributed.device_timer import DeviceClock, Lap
from bertds.distributed.ranks import Ranks
from bertds.monitor.health import rank_name
from bertds.system.logs import log

SLOWER = 0.10
"""A rank is slow if its forward pass takes longer than the others' median by this fraction."""
STEPS = 20
"""Number of steps over which it must be slower, however many of them have a train line."""
EXCEPTIONS = 1
"""Number of these steps in which it may be less than half as much slower: a pause of another rank.
By noise alone, a rank is slower in 19 of 20 steps about once in a million windows."""
SLOWER_AT_START = 0.25
"""The same fraction for the check at the start, which takes less than a second."""
TRIES_AT_START = 3
"""A rank counts as slow at the start if it is slower in each of these checks."""
SHOWN = 4
"""The maximum number of slow ranks in a line, the slowest first."""
NAMES = ("forward", "backward", "waiting")


class TimedRanks(Ranks, Protocol):
    """The processes of a run, whose engine times its passes."""

    @property
    def forward_clock(self) -> DeviceClock:
        """Adds up this rank's forward passes."""

    @property
    def backward_clock(self) -> DeviceClock:
        """Adds up this rank's backward passes."""


def compare_ranks(ranks: TimedRanks, waiting: DeviceClock) -> RankSpeed | None:
    """Warn of ranks that are slow already, and compare them from now on. Collective.

    Args:
        ranks: the engine.
        waiting: see :class:`RankSpeed`.

    Returns:
        None if there is only one rank.
    """
    if ranks.world_size == 1:
        return None
    rank_speed = RankSpeed(ranks, waiting)
    rank_speed.check_at_start()
    return rank_speed


class RankSpeed:
    """Collects each rank's seconds for the metric lines.

    Args:
        ranks: the engine.
        waiting: measures the seconds in which this rank waits for the others before an update.
    """

    def __init__(self, ranks: TimedRanks, waiting: DeviceClock) -> None:
        self._ranks = ranks
        self._forward = ranks.forward_clock
        self._clocks = (ranks.backward_clock, waiting)
        self._places: list[dict[str, Any]] = ranks.gather_objects(_place(ranks.device))
        self._own: deque[tuple[Lap, int]] = deque()  # steps since the last line
        self._earlier = (0.0, 0)  # seconds and tokens of the steps before these
        self._steps: deque[list[float]] = deque(maxlen=STEPS)  # seconds per token of each rank

    def check_at_start(self) -> None:
        """Time a matrix product on each rank, and warn of slow ones. Collective."""
        found: dict[int, float] = {}
        for attempt in range(TRIES_AT_START):
            seconds = self._ranks.gather_objects(_time_product(self._ranks.device))
            slow = dict(slow_ones(seconds, SLOWER_AT_START))
            # Other programs that disturb one check rarely disturb the same rank in the next one.
            found = {
                rank: min(slower, found.get(rank, slower))
                for rank, slower in slow.items()
                if attempt == 0 or rank in found
            }
            if not found:  # the same on all ranks, because they compare the same numbers
                return
        for rank, slower in found.items():
            log.warning(
                "%s takes %.0f%% longer than the other ranks for a matrix product",
                rank_name(rank, **self._places[rank]),
                100 * slower,
            )

    def end_step(self, tokens: int) -> None:
        """Record this rank's part of a step, without waiting.

        Args:
            tokens: real tokens of its micro batches.
        """
        self._own.append((self._forward.cut(), tokens))
        if len(self._own) > STEPS:  # a GPU has finished steps that are 20 steps old
            lap, before = self._own.popleft()
            self._earlier = (self._earlier[0] + lap.seconds(), self._earlier[1] + before)

    def line(self) -> dict[str, Any]:
        """Return the values about the ranks for a train line. Collective.

        Returns:
            ``rank_seconds``: lowest, median and highest of all ranks, for the forward passes, the
            backward passes (including waiting) and the waiting for other ranks.
            ``slow_ranks``, if there are any: rank, host, GPU and the fraction by which it is
            slower.
        """
        # This rank's values since the last line: totals, then seconds per token by step.
        steps = [(lap.seconds(), tokens) for lap, tokens in self._own]
        seconds, tokens = (sum(column) for column in zip(self._earlier, *steps))
        own = [seconds, *(clock.take() for clock in self._clocks), float(tokens)]
        own += [seconds / max(tokens, 1) for seconds, tokens in steps]
        self._own.clear()
        self._earlier = (0.0, 0)
        # Every rank fills its own row of a table of zeros; the sum is the table of all ranks.
        size = self._ranks.world_size
        mine = [0.0] * (len(own) * size)
        mine[len(own) * self._ranks.rank : len(own) * (self._ranks.rank + 1)] = own
        told = self._ranks.global_sums(mine).view(size, len(own)).tolist()
        # A backward pass ends with the reduction of the gradients. Time beyond the fastest rank's
        # seconds per token is waiting.
        quickest = min(rank[1] / max(rank[3], 1.0) for rank in told)
        for rank in told:
            rank[2] += max(0.0, rank[1] - quickest * rank[3])
        self._steps.extend(map(list, zip(*(rank[4:] for rank in told))))
        values: dict[str, Any] = {
            "rank_seconds": {
                name: [round(ends(column), 4) for ends in (min, median, max)]
                for name, column in zip(NAMES, zip(*told))
            }
        }
        slow = self._slow()
        return {**values, "slow_ranks": slow} if slow else values

    def _slow(self) -> list[dict[str, Any]]:
        if len(self._steps) < STEPS:
            return []
        by_rank = list(zip(*map(_shares, self._steps)))
        found = []
        for rank, shares in enumerate(by_rank):
            # Noise makes each rank the slower one in half of the steps, a fault in nearly all.
            below = sum(share <= SLOWER / 2 for share in shares)
            slower = median_low(shares)
            if slower > SLOWER and below <= EXCEPTIONS:
                found.append((slower, rank))
        return [
            {"rank": rank, **self._places[rank], "slower": round(slower, 3)}
            for slower, rank in sorted(found, reverse=True)[:SHOWN]
        ]


def slow_ones(seconds: Sequence[float], limit: float) -> list[tuple[int, float]]:
    """Return the slow ranks as (rank, fraction by which it is slower than the others' median)."""
    return [(rank, slower) for rank, slower in enumerate(_shares(seconds)) if slower > limit]


def _shares(seconds: Sequence[float]) -> list[float]:
    shares = []
    for rank, own in enumerate(seconds):
        others = median([*seconds[:rank], *seconds[rank + 1 :]] or [own])
        shares.append(own / others - 1.0 if others > 0 else 0.0)
    return shares


def _place(device: torch.device) -> dict[str, Any]:
    """Return this rank's host, and its GPU's number on the machine; None on a CPU."""
    gpu: int | None = None
    if device.type == "cuda":
        gpu = device.index or 0
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if gpu < len(visible) and visible[gpu].isdigit():
            gpu = int(visible[gpu])
    return {"host": socket.gethostname(), "gpu": gpu}


def _time_product(device: torch.device) -> float:
    """Return the seconds of a matrix product, the best of several."""
    on_gpu = device.type == "cuda"
    size = 4096 if on_gpu else 384
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if on_gpu else None)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
