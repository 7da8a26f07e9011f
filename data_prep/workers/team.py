"""Distributes the work of a stage: to this process and its workers, or to several tasks.

The stages do not know which. A stage consists of groups of tasks; each task writes one file and a
marker.

- ``SingleProcess``: tasks with a valid marker are done, the rest is given to the workers.
- ``SharedFolderTeam``: each of several processes, on one or more hosts, claims free groups, does
  them as above, and reads the results of the others. No process begins the next stage before all
  groups of this one are done. A process with nothing left to claim waits, and takes over the claims
  of a dead task. So it does not matter how many tasks there are, when they start, or which of them
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
"""The result of a task, as stored in its marker."""
Function = Callable[[Any], Result]
"""Runs one task."""
Done = Callable[[Result], None]
"""Called with the result of every task, including those of other processes."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Task(Protocol):
    """One file to write."""

    def earlier(self) -> Result | None:
        """Return the result in a valid marker of an earlier run, or None: make the file."""
        ...


class Group(NamedTuple):
    """Tasks that one process does together."""

    name: str
    """Its name, the same in all processes."""
    tasks: Callable[[], Iterable[Any]]
    """Yields the tasks; may read a large file while it does."""


class Team(Protocol):
    """The interface that the stages use."""

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return ``make()``, a JSON value. Only one of several processes calls it."""
        ...

    def each(self, stage: str, function: Function, groups: Iterable[Group], done: Done) -> None:
        """Run every task, in any process."""
        ...


def _unfinished(group: Group, done: Done) -> Iterator[Any]:
    """Yield a group's tasks without a valid marker; pass the results of the others to ``done``."""
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
        """Run the tasks that have no valid marker."""
        self.workers.run(function, (t for group in groups for t in _unfinished(group, done)), done)


class _Call(NamedTuple):
    """A task with the name of its group."""

    group: str
    function: Function
    task: object


def _call(call: _Call) -> tuple[str, Result]:
    return call.group, call.function(call.task)


class SharedFolderTeam:
    """This process as one of several tasks that prepare one corpus."""

    def __init__(self, workers: Workers, lock: JointLock) -> None:
        self.workers, self.lock = workers, lock
        self.claims = Claims(lock)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of ``make()``, which only the first task to come calls."""
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
        """Do the groups that no other task does, and wait for the others."""
        waiting = {f"{stage}-{group.name}": group for group in self._from_own_place([*groups])}
        pause = _SHORTEST_PAUSE
        while True:
            own = self._claimed(waiting, function, done)
            there = self.claims.names()
            # Read the results of groups that other tasks have finished.
            for name in [name for name in waiting if f"{name}.done" in there]:
                del waiting[name]
                for result in [] if name in own else self.claims.value(name):
                    done(result)
            if not waiting:
                return
            pause = _SHORTEST_PAUSE if own else _sleep(pause)

    def _from_own_place(self, groups: list[Group]) -> list[Group]:
        """Order groups so that tasks which start together do not claim the same ones."""
        first = len(groups) * (self.lock.index % self.lock.count) // self.lock.count
        return groups[first:] + groups[:first]

    def _claimed(self, waiting: dict[str, Group], function: Function, done: Done) -> set[str]:
        """Claim groups one by one as workers become free; run them and return their names."""
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
                # The listing is older: it only avoids claiming what was done before.
                if f"{name}.done" in there or not self.claims.take(name):
                    continue
                if (self.claims.folder / f"{name}.done").exists():
                    continue
                results[name] = []
                open_tasks[name] = 1  # for the group itself, until its last task is handed out
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
    """Return a value as the other tasks will read it, so that all use the same one."""
    read: T = parse_json(json.dumps(value))
    return read
