"""Signs of life: how long this process has run itself, and whether a neighbour's process runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bertds.system.processes import processor_time


class OwnTime:
    """A clock that advances only while this process runs.

    What a process did not hear while it was suspended, or got no turn on a busy machine, proves
    nothing about the others. So silence is measured on this clock.

    Args:
        longest: seconds; :meth:`tick` is called more often than this as long as the process runs.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.seconds = 0.0
        self._before = time.monotonic()

    def tick(self) -> float:
        """Add the time since the last tick, ``longest`` at most; return the clock's reading."""
        now = time.monotonic()
        self.seconds += min(now - self._before, self.longest)
        self._before = now
        return self.seconds


@dataclass(slots=True)
class _Seen:
    cpu: float
    at: float


class CpuWatch:
    """Notices that processes of this machine use the CPU.

    A process that gets too few turns to speak, or that holds Python's lock in a long compilation,
    lives: its processor time grows. That of a stopped one stands still.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def look(self, pid: int, now: float) -> None:
        """Take note of a process's processor time; ``now`` is on the caller's clock."""
        cpu = processor_time(pid)
        before = self._seen.get(pid)
        if cpu is not None and (before is None or before.cpu != cpu):
            self._seen[pid] = _Seen(cpu, now)

    def ran_since(self, pid: int, then: float) -> bool:
        """Return whether the process is known to have run after ``then``."""
        seen = self._seen.get(pid)
        return seen is not None and seen.at > then
