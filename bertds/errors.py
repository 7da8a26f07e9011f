"""The exceptions that bertds raises intentionally, and the exit code of each.

A command exits with 0 on success, 1 if it failed, 2 if its input is wrong (a setting, a file, an
option), and 75 if it stopped early with its work saved and can be run again (``EX_TEMPFAIL`` of
sysexits.h; the Slurm scripts requeue on it). An immediate exit by Ctrl-C gives 130, as in a shell.
"""

from __future__ import annotations

import re

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RUN_AGAIN = 75
EXIT_INTERRUPTED = 130

_LONGEST_REASON = 300
# Controls, Unicode's own line breaks, and the surrogates that represent bytes that are not UTF-8.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: object) -> str:
    """Return a message with the characters escaped that would break its line or a terminal.

    File names may contain them: all bytes are allowed in a name, except for ``/`` and zero.
    """
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def reason_of(error: Exception) -> str:
    """Return what went wrong in one line, without the file, which the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return " ".join(str(error).split())


def short_reason(error: BaseException) -> str:
    """Return the beginning of a library's error in one line; the error's type if it has no text."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


class BertdsError(Exception):
    """A failure that is not the user's mistake (a full disk, a lost peer, a diverged run).

    The message is one line that names the file or key, the value that was found, and the expected
    value or the remedy.
    """

    exit_code = EXIT_FAILED

    def __str__(self) -> str:
        """Return the message in one line, whatever characters its file names contain."""
        return one_line(super().__str__())


class UserError(BertdsError):
    """The user's input is wrong; nothing was changed."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(UserError):
    """A recipe, a DeepSpeed JSON or a ``--set`` has an unknown key or an impossible value."""


class DataError(UserError):
    """A source, a shard, a manifest or a vocabulary is missing, damaged or of another kind."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model or vocabulary."""


class InUseError(UserError):
    """Another process is writing to this folder."""


class StoppedError(BertdsError):
    """The command stops early with its work saved; the same command resumes it."""

    exit_code = EXIT_RUN_AGAIN


class StoreError(StoppedError):
    """A store (S3, a web server, ...) could not be reached for a long time."""
