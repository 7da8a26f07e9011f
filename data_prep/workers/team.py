"""Who does the work of a stage: this process with its workers, or several tasks together.

The stages do not know which. A stage is groups of tasks; each task writes one file and a marker.

- ``SingleProcess``: what has a valid marker is done, the rest is given to the workers.
- ``SharedFolderTeam``: each of several processes, on one host or many, claims free groups, does
  them as above, and reports the others. None begins the next stage before all groups of this one
  are done. A process that has nothing left to claim waits, and takes over what a dead task had
  claimed; so it does not matter how many tasks there are, when they start, or which of them
  survive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from bertds.system.json_fields import parse_json
from data_prep.workers.joint_lock import Claims, JointLock
from data_prep.workers.pool import Workers

T = TypeVar("T")
Result = dict[str, Any]
"""What a task found, as its marker keeps it."""
Function = Callable[[Any], Result]
"""Does one task."""
Done = Callable[[Result], None]
"""Is called with the result of every task, whoever did it."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Task(Protocol):
    """One file to write."""

    def earlier(self) -> Result | None:
        """Return what an earlier run's valid marker says, or None: the file must be made."""
        ...


class Group(NamedTuple):
    """Tasks that one process does."""

    name: str
    """The same in all processes."""
    tasks: Callable[[], Iterable[Any]]
    """Gives the tasks; may read a large file meanwhile."""


class Team(Protocol):
    """What the stages ask for."""

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return ``make()``, a value for JSON; of several processes one calls it."""
        ...

    def each(self, stage: str, function: Function, groups: Iterable[Group], done: Done) -> None:
        """Have every task done, by any process."""
        ...


def _unfinished(group: Group, done: Done) -> Iterator[Any]:
    """Yield a group's tasks, but for those with a valid marker: these are done."""
    for task in group.tasks():
        earlier = task.earlier()
        if earlier is None:
            yield task
        else:
            done(earlier)


class SingleProcess:
    """This process and its workers."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return ``make()``."""
        return _through_json(make())

    def each(self, stage: str, function: Function, groups: Iterable[Group], done: Done) -> None:
        """Do what has no valid marker."""
        self.workers.run(function, (t for group in groups for t in _unfinished(group, done)), done)


class _Call(NamedTuple):
    """A task that remembers its group."""

    group: str
    function: Function
    task: object


def _call(call: _Call) -> tuple[str, Result]:
    return call.group, call.function(call.task)


class SharedFolderTeam:
    """This process as one of several tasks."""

    def __init__(self, workers: Workers, lock: JointLock) -> None:
        self.workers, self.lock = workers, lock
        self.claims = Claims(lock)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make()`` gave to the task that was first to call it."""
        pause = _SHORTEST_PAUSE
        while f"{name}.done" not in self.claims.names():
            if self.claims.take(name):
                value = _through_json(make())
                self.claims.finish(name, value)
                return value
            pause = _sleep(pause)
        made: T = self.claims.value(name)
        return made

    def each(self, stage: str, function: Function, groups: Iterable[Group], done: Done) -> None:
        """Do what no other task does, and wait for the others."""
        waiting = {f"{stage}-{group.name}": group for group in self._from_own_place([*groups])}
        pause = _SHORTEST_PAUSE
        while True:
            own = self._claimed(waiting, function, done)
            there = self.claims.names()
            for name in [name for name in waiting if f"{name}.done" in there]:
                del waiting[name]
                for result in [] if name in own else self.claims.value(name):
                    done(result)
            if not waiting:
                return
            pause = _SHORTEST_PAUSE if own else _sleep(pause)

    def _from_own_place(self, groups: list[Group]) -> list[Group]:
        """Order groups so that tasks which start together do not go for the same ones."""
        first = len(groups) * (self.lock.index % self.lock.count) // self.lock.count
        return groups[first:] + groups[:first]

    def _claimed(self, waiting: dict[str, Group], function: Function, done: Done) -> set[str]:
        """Claim groups one by one as workers become free, and do them; return their names."""
        results: dict[str, list[Result]] = {}
        open_tasks: dict[str, int] = {}

        def note(name: str, result: Result) -> None:
            results[name].append(result)
            done(result)

        def finish_if_whole(name: str) -> None:
            if open_tasks[name] == 0:
                self.claims.finish(name, results[name])

        def calls() -> Iterator[_Call]:
            there = self.claims.names()
            for name, group in waiting.items():
                # The listing is from some time ago: it only saves asking for what was done then.
                if f"{name}.done" in there or not self.claims.take(name):
                    continue
                if (self.claims.folder / f"{name}.done").exists():
                    continue
                results[name] = []
                open_tasks[name] = 1  # the group itself, until its last task is given out
                for task in _unfinished(group, partial(note, name)):
                    open_tasks[name] += 1
                    yield _Call(name, function, task)
                open_tasks[name] -= 1
                finish_if_whole(name)

        def finish_task(answer: tuple[str, Result]) -> None:
            name, result = answer
            note(name, result)
            open_tasks[name] -= 1
            finish_if_whole(name)

        self.workers.run(_call, calls(), finish_task)
        return set(results)


def _sleep(pause: float) -> float:
    time.sleep(pause)
    return min(1.5 * pause, _LONGEST_PAUSE)


def _through_json(value: T) -> T:
    """Return a value as the other tasks will read it, so that all continue with the same."""
    read: T = parse_json(json.dumps(value))
    return read
