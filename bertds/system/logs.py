"""Log lines: on the terminal of the main process, and in the run folder's ``log.txt``."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import TextIO

from bertds.errors import one_line
from bertds.system.secrets import masked

log = logging.getLogger("bertds")


class _Line(logging.Formatter):
    """``12:01:02 message`` for the terminal; warnings and errors also show their level."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{clock} {level}{one_line(masked(record.getMessage()))}"


class _FileLine(logging.Formatter):
    """A line with the date; without credentials, like that of the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message in one line; a traceback, which may follow, keeps its lines."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current standard error, which a progress display may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def start_logging(is_main: bool) -> None:
    """Send log lines to standard error; processes other than the main one only show warnings."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(_Line())
    handler.setLevel(logging.INFO if is_main else logging.WARNING)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class LogFile(logging.FileHandler):
    """A file of log lines. Lines for which a full disk has no space are lost silently.

    The terminal shows them too, and the code that writes important files reports the full disk.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""

    def close(self) -> None:
        """Close the file, even if there is no space for the last lines."""
        with contextlib.suppress(OSError):
            super().close()


def log_to_file(path: Path) -> logging.Handler:
    """Also append log lines, with the date, to ``path``. Returns the handler to close."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(_FileLine("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    return handler
