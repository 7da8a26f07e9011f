"""Signs of life: how long this process has run itself, and whether others do."""

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
    lives: its processor time grows. That of a stopped one makes no progress.
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


class ParentWatch:
    """Notices that the launcher is gone."""

    def __init__(self) -> None:
        self._parent = os.getppid() if has_launcher() else None
        self._gone_since: float | None = None
        self._moved = (0, 0.0)  # the progress that was last seen, and when

    def orphaned_and_idle(self, now: float, progress: int) -> float:
        """Return for how many seconds the launcher has been gone without any progress here.

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
    """What is used of ``torch.distributed.Store``."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there, without waiting."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value; waits for it."""
        ...

    def set(self, key: str, value: str, /) -> None:
        """Set a value for all ranks."""

    def set_timeout(self, timeout: timedelta, /) -> None:
        """Limit how long :meth:`get` waits."""

    def clone(self) -> KeyValueStore:
        """Return a connection of its own, for another thread."""
        ...


class TimedStore:
    """The store, with a note of when a question was asked that it has not answered yet.

    Args:
        store: of the process group.
        own: the clock of the note.
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
