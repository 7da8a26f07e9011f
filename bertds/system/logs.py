"""Log lines: to the terminal on the main process, and to the run folder's ``log.txt``."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import TextIO

from bertds.system.secrets import masked

log = logging.getLogger("bertds")


class _Line(logging.Formatter):
    """``12:01:02 message`` for people; warnings and errors say what they are."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{clock} {level}{masked(record.getMessage())}"


class _FileLine(logging.Formatter):
    """A line with the date; like the terminal's, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what standard error is at that moment: a progress display puts itself there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def start_logging(is_main: bool) -> None:
    """Send log lines to standard error; processes other than the main one show only warnings."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(_Line())
    handler.setLevel(logging.INFO if is_main else logging.WARNING)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class LogFile(logging.FileHandler):
    """A file of log lines. Those that a full disk has no room for are lost without a word.

    The terminal shows them too, and the full disk is reported by whoever writes what matters.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""

    def close(self) -> None:
        """Close, even if the last lines find no room."""
        with contextlib.suppress(OSError):
            super().close()


def log_to_file(path: Path) -> logging.Handler:
    """Also append log lines, with the date, to ``path``. Returns the handler to close."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(_FileLine("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    return handler
