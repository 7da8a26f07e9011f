"""Detects training without progress: each rank's activity, and how long it may take.

A rank can be alive and still block the others for ever, because its main thread or its GPU hangs.
All ranks pass the same places in the same order, so the others wait for the one that has passed the
fewest. The limit for one place is learnt from the duration of the run's own steps.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from types import FrameType

LEARNT_STEPS = 5
"""Number of steps, without the first, after which the run knows the duration of a step."""
STEP_TIMES = 5.0
"""The number of step times for which a rank may stay at one place."""
PATIENCE = 10.0
"""Factor of the limit while a rank waits for data, writes or compiles: a file system that does not
respond for some minutes is not a fault of the rank."""
PAUSES = ("validation", "save")
"""Activities between steps. Each is compared with the longest one of its kind so far."""

_COLLECTIVE = ("distributed_c10d.py",)
_PATIENT = ("convert_frame.py", "compile_fx.py", "atomic_files.py", "folder_lock.py", "trackers.py")


@dataclass(frozen=True, slots=True)
class Sign:
    """The state that a rank reports with each beat."""

    beat: int
    """Number of the beat, so that no two signs are equal."""
    count: int
    """Number of places that its main thread has passed."""
    activity: str
    """Its current activity: start, data, step, validation or save."""
    step: int
    waiting: bool
    """Whether it waits in a collective operation."""
    patient: bool
    """Whether it compiles, or reads or writes a file."""
    place: str
    """Its innermost Python call, as ``function (file.py:12)``."""

    def to_text(self) -> str:
        """Return the sign as text for the store."""
        return json.dumps(astuple(self))

    @classmethod
    def from_text(cls, text: str) -> Sign:
        """Parse the result of :meth:`to_text`."""
        return cls(*json.loads(text))


class Progress:
    """The activity of this rank's main thread, which sets it; the heartbeat's threads read it.

    Args:
        least_seconds: the minimum of the limit; 0 = no limit.
    """

    def __init__(self, least_seconds: float) -> None:
        self.least_seconds = least_seconds
        self.step_seconds = 0.0
        """Duration of a step, the median of the last ones; 0 = not known yet."""
        self.count = 0
        self.step = 0
        self.activity = "start"
        self._main = threading.get_ident()
        self._since = time.perf_counter()
        self._step_began = 0.0
        self._paused = 0.0
        self._steps: deque[float] = deque(maxlen=50)
        self._longest: dict[str, float] = {}

    def enter(self, activity: str) -> None:
        """Record that the main thread begins an activity; all ranks do so in the same order.

        Args:
            activity: data, step, validation or save.
        """
        now = time.perf_counter()
        if self.activity in PAUSES:
            seconds = now - self._since
            self._paused += seconds
            self._longest[self.activity] = max(seconds, self._longest.get(self.activity, 0.0))
        self.activity = activity
        self._since = now
        self.count += 1

    def step_done(self, step: int) -> None:
        """Record that a step is done, and learn its duration."""
        self.enter("step")
        self.step = step
        # The first step is not counted: compilers and caches make it slow. Pauses are no part of a
        # step.
        if self._step_began:
            self._steps.append(self._since - self._step_began - self._paused)
            if len(self._steps) >= LEARNT_STEPS:
                self.step_seconds = median(self._steps)
        self._step_began, self._paused = self._since, 0.0

    def limit(self, activity: str = "step", *, patient: bool = False) -> float | None:
        """Return the limit for staying at one place, in seconds; None = not known yet."""
        if self.least_seconds <= 0 or self.step_seconds == 0.0 or activity == "start":
            return None
        usual = self._longest.get(activity, 0.0) if activity in PAUSES else self.step_seconds
        if usual == 0.0:
            return None
        longest = max(self.least_seconds, STEP_TIMES * usual)
        return longest * (PATIENCE if patient or activity == "data" else 1.0)

    def sign(self, beat: int) -> Sign:
        """Return the sign for the others; called by a thread other than the main one."""
        frame = sys._current_frames().get(self._main)
        files, place = _stack(frame)
        return Sign(
            beat=beat,
            count=self.count,
            activity=self.activity,
            step=self.step,
            waiting=any(name in files for name in _COLLECTIVE),
            patient=any(name in files for name in _PATIENT),
            place=place,
        )


def _stack(frame: FrameType | None) -> tuple[set[str], str]:
    """Return the file names on a thread's stack, and a description of its innermost call."""
    files: set[str] = set()
    place = ""
    while frame is not None:
        name = Path(frame.f_code.co_filename).name
        place = place or f"{frame.f_code.co_name} ({name}:{frame.f_lineno})"
        files.add(name)
        frame = frame.f_back
    return files, place


class Standstill:
    """Finds the rank that the others wait for, from the signs of all ranks.

    Args:
        progress: of the listener, which knows the limits.
        world_size: nothing is found before each of these ranks has sent a sign.
    """

    def __init__(self, progress: Progress, world_size: int) -> None:
        self._progress = progress
        self._world_size = world_size
        self._signs: dict[int, Sign] = {}
        self._since: dict[int, float] = {}

    def note(self, rank: int, sign: Sign, now: float) -> None:
        """Record a rank's sign; ``now`` is in seconds, on a clock that only counts listening."""
        before = self._signs.get(rank)
        if before is None or before.count != sign.count:
            self._since[rank] = now
        self._signs[rank] = sign

    def find(self, now: float) -> tuple[list[int], str] | None:
        """Return the ranks without progress for too long, and a text about them; or None."""
        if len(self._signs) < self._world_size:
            return None
        fewest = min(sign.count for sign in self._signs.values())
        behind = [rank for rank, sign in self._signs.items() if sign.count == fewest]
        # Of several ranks at the same place, those in a collective operation are not at fault.
        working = [rank for rank in behind if not self._signs[rank].waiting]
        named = sorted(working or behind)
        for rank in named:
            sign = self._signs[rank]
            limit = self._progress.limit(sign.activity, patient=sign.patient)
            if limit is None or now - self._since[rank] <= limit:
                return None
        first = self._signs[named[0]]
        seconds = now - self._since[named[0]]
        doing = first.activity if first.activity in PAUSES else f"step {first.step + 1}"
        said = (
            f"no progress for {seconds:.0f} s in {doing} (a step usually takes "
            f"{self._progress.step_seconds:.3g} s); its main thread is in {first.place}"
        )
        return named, said
