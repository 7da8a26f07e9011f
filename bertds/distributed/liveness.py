"""Signs of life: how long this process itself has run, and whether others run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

from bertds.distributed.rank_info import has_launcher
from bertds.system.processes import processor_time

T = TypeVar("T")


class OwnTime:
    """A clock that advances only while this process runs.

    A process that was suspended, or got no CPU time on a busy machine, heard nothing. This proves
    nothing about the others, so silence is measured on this clock.

    Args:
        longest: seconds; a running process calls :meth:`tick` more often than this.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.seconds = 0.0
        self._before = time.monotonic()

    def tick(self) -> float:
        """Add the time since the last tick, at most ``longest``; return the clock's reading."""
        now = time.monotonic()
        self.seconds += min(now - self._before, self.longest)
        self._before = now
        return self.seconds


@dataclass(slots=True)
class _Seen:
    cpu: float
    at: float


class CpuWatch:
    """Detects that processes on this machine use the CPU.

    A process without enough CPU time to send a beat, or one that holds Python's lock in a long
    compilation, is alive: its processor time grows. That of a stopped process does not.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def look(self, pid: int, now: float) -> None:
        """Record a process's processor time; ``now`` is on the caller's clock."""
        cpu = processor_time(pid)
        before = self._seen.get(pid)
        if cpu is not None and (before is None or before.cpu != cpu):
            self._seen[pid] = _Seen(cpu, now)

    def ran_since(self, pid: int, then: float) -> bool:
        """Return whether the process is known to have run after ``then``."""
        seen = self._seen.get(pid)
        return seen is not None and seen.at > then


class ParentWatch:
    """Detects that the launcher is gone."""

    def __init__(self) -> None:
        self._parent = os.getppid() if has_launcher() else None
        self._gone_since: float | None = None
        self._moved = (0, 0.0)  # the last progress, and when it was seen

    def orphaned_and_idle(self, now: float, progress: int) -> float:
        """Return how many seconds the launcher has been gone without any progress here.

        Args:
            now: on the caller's clock, in seconds.
            progress: a number that changes when there is progress.
        """
        if progress != self._moved[0]:
            self._moved = (progress, now)
        if self._parent is None or os.getppid() == self._parent:
            return 0.0
        self._gone_since = self._gone_since or now
        return now - max(self._gone_since, self._moved[1])


class KeyValueStore(Protocol):
    """The part of ``torch.distributed.Store`` that is used."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are set, without waiting."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value; waits until it is set."""
        ...

    def set(self, key: str, value: str, /) -> None:
        """Set a value for all ranks."""

    def set_timeout(self, timeout: timedelta, /) -> None:
        """Limit how long :meth:`get` waits."""

    def clone(self) -> KeyValueStore:
        """Return a separate connection, for another thread."""
        ...


class TimedStore:
    """The store, with the time of a request that it has not answered yet.

    Args:
        store: of the process group.
        own: the clock for this time.
    """

    def __init__(self, store: KeyValueStore, own: OwnTime) -> None:
        self._store = store
        self._own = own
        self.asked: float | None = None

    def _ask(self, question: Callable[[], T]) -> T:
        self.asked = self._own.seconds
        answer = question()
        self.asked = None
        return answer

    def has(self, key: str) -> bool:
        """Whether the key is set."""
        return bool(self._ask(lambda: self._store.check([key])))

    def get(self, key: str) -> str:
        """Return a key's value; waits until it is set."""
        return str(self._ask(lambda: self._store.get(key)).decode())

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        self._ask(lambda: self._store.set(key, value))
