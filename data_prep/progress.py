"""Output for the user: a bar on a terminal, occasional lines elsewhere, a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from bertds.display.words import in_words
from bertds.errors import one_line
from bertds.system.secrets import masked

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_EVERY_SECONDS = 15.0
_silences = 0


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing within the context: the user is not waiting for this work (a sample)."""
    global _silences
    _silences += 1
    try:
        yield
    finally:
        _silences -= 1


class Progress:
    """Progress of one stage, in bytes or files; a context manager."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self.stage, self.total, self.unit = stage, max(1, total), unit
        self.done = 0
        self.documents = 0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._begin = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not _silences:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.total, rate="")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None and self._task is not None:
            if kind is None:
                self._bar.update(self._task, completed=self.total)
            self._bar.stop()

    def add(self, amount: int, documents: int = 0) -> None:
        """Count completed work."""
        self.done += amount
        self.documents += documents
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate())
        elif time.monotonic() - self._told > _LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            share = min(100, 100 * self.done // self.total)
            say(f"{self.stage}: {share}%, {self._rate()}{self._time_left()}")

    def _time_left(self) -> str:
        seconds = time.monotonic() - self._begin
        if not 0 < self.done < self.total:
            return ""
        return f", {in_words(seconds * (self.total - self.done) / self.done)} left"

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-3)
        if self.unit == "bytes":
            return (
                f"{self.done / seconds / 1e6:.1f} MB/s, {self.documents / seconds:,.0f} documents/s"
            )
        return f"{self.done:,}/{self.total:,} {self.unit}"


def say(text: str) -> None:
    """Print one line for the user, on stderr, with secrets masked and controls escaped.

    The work continues if the line cannot be written: the reader of a pipe has ended
    (``2>&1 | head``), or the disk of a log file is full.
    """
    if not _silences:
        with suppress(OSError):
            print(one_line(masked(text)), file=sys.stderr, flush=True)


def summary(rows: Mapping[str, str]) -> None:
    """Print the closing table."""
    width = max(map(len, rows))
    for name, value in rows.items():
        say(f"  {name:<{width}}  {value}")
