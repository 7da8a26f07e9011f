"""Named points at which tests inject faults.

The code states where it is, and a test decides what happens there: a signal, an exception, another
value. Without a test nothing is registered, and a point costs one look-up in an empty dictionary.

A test can also inject a signal into a process that it starts, with the environment variable
``BERTDS_FAULT=POINT:PASSING:SIGNAL``. ``checkpoint.publish:2:KILL`` kills the process when it is
about to publish its second checkpoint.

`POINTS` lists all points.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

POINTS = {
    "run.start": "the command has begun; nothing is imported but what reads the command line",
    "run.open": "everything is imported; the run folder is about to be opened",
    "run.meet": "the processes are about to connect to each other",
    "run.continue": "everything is built; the newest checkpoint is about to be looked for",
    "run.leave": "this rank is about to leave the run",
    "run.clock": "value: the clock of training, in seconds",
    "data.batch": "value: a batch of one step, just made",
    "engine.group": "the process group is about to be made",
    "engine.wrap": "the optimizer is about to be made",
    "engine.seed": "a micro batch begins; facts: step, micro_step",
    "engine.forward": "a micro batch is about to go through the model",
    "engine.output": "value: the model's output; facts: micro_batch",
    "engine.step": "the update is about to be made",
    "engine.stepped": "the update was made",
    "engine.evaluate": "a held-out micro batch is about to go through the model",
    "checkpoint.begun": "the temporary folder of a checkpoint was made",
    "checkpoint.write": "bytes are about to be written to a file of a checkpoint",
    "checkpoint.sync": "a file of a checkpoint is about to be synced and closed",
    "checkpoint.manifest": "all files are written, the manifest is not",
    "checkpoint.publish": "the folder is about to get its name",
    "checkpoint.published": "the folder has its name",
    "checkpoint.latest": "the name of the newest checkpoint is about to be written",
    "checkpoint.remove": "an old checkpoint is about to be removed",
    "store.patience": "value: how long a store may fail to answer, in seconds",
    "disk.free": "value: the free bytes of a file system",
    "lock.remove": "the lock of a dead process is about to be removed",
    "prep.read": "bytes of a source on this machine are about to be read",
    "prep.report": "everything is prepared but the report and the manifest",
    "prep.manifest": "the report is written, the manifest is not",
    "prep.finished": "the manifest is written; the working folder is about to be removed",
    "prep.done": "the working folder is removed; the other tasks do not know it yet",
    "tasks.leave": "the last of several tasks is about to remove the traces of their session",
    "metrics.write": "a metric line is about to be written",
}
"""Point -> its meaning. At a point with a value, a test can return another value."""

VARIABLE = "BERTDS_FAULT"

_actions: dict[str, list[Callable[..., Any]]] = {}


def reached(point: str, **facts: object) -> None:
    """Report that a point was reached; a test's action may raise, or end the process."""
    if _actions:
        for action in _actions.get(point, ()):
            action(**facts)


def passed(point: str, value: T, **facts: object) -> T:
    """Return a value that passes a point, or the value with which a test replaces it."""
    if _actions:
        for action in _actions.get(point, ()):
            value = action(value, **facts)
    return value


def inject(point: str, action: Callable[..., Any]) -> None:
    """Run an action at a point from now on, in this process.

    Args:
        point: a name in :data:`POINTS`.
        action: is called with the facts of the point. If the point has a value, the action is
            called with the value first, and returns the value to continue with.
    """
    if point not in POINTS:
        raise ValueError(f"{point}: unknown fault point; allowed: {', '.join(POINTS)}")
    _actions.setdefault(point, []).append(action)


@contextmanager
def injected(point: str, action: Callable[..., Any]) -> Iterator[None]:
    """Run an action at a point within the ``with`` block; see :func:`inject`."""
    inject(point, action)
    try:
        yield
    finally:
        _actions[point].remove(action)
        if not _actions[point]:
            del _actions[point]


def send_signal(point: str, passing: int, number: int) -> None:
    """Send a signal to this process at the n-th pass of a point, counted from 1."""
    left = passing

    def act(*values: object, **facts: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        return values[0] if values else None

    inject(point, act)


def _read_environment(text: str) -> None:
    """Register the fault that the environment variable describes."""
    try:
        point, passing, name = text.split(":")
        send_signal(point, int(passing), signal.Signals[f"SIG{name}"])
    except (ValueError, KeyError) as error:
        raise SystemExit(f"{VARIABLE}={text}: not POINT:PASSING:SIGNAL ({error})") from None


if VARIABLE in os.environ:
    _read_environment(os.environ[VARIABLE])
