"""Measures training time, which a schedule with a time limit follows."""

from __future__ import annotations

import time

from bertds.system.fault_points import passed


def seconds() -> float:
    """Return a monotonic time in seconds."""
    return passed("run.clock", time.perf_counter())


class TrainingClock:
    """Counts hours of training in laps, one per optimizer step."""

    def __init__(self) -> None:
        self._lap_began = seconds()

    def lap_hours(self) -> float:
        """Return the hours since the last lap began, and begin the next."""
        now = seconds()
        hours = (now - self._lap_began) / 3600.0
        self._lap_began = now
        return hours
