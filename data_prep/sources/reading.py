"""Opens source files. What the system cannot read is reported as that, with the file's name.

An error of the disk must not reach the decompressors: some of them report damaged data as an
OSError too, and the message would then ask the user to download an intact file again.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from bertds.errors import BertdsError, DataError
from bertds.system.fault_points import reached
from bertds.system.stored_path import Facts, FilePath, StoredPath

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 128 << 10
_OF_THE_USER = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""The user named a file that does not exist or may not be read; other errors are of the disk."""


def unreadable(path: FilePath | str, error: OSError) -> BertdsError:
    """Return the error for a file that the system cannot open or read."""
    kind = DataError if error.errno in _OF_THE_USER else BertdsError
    return kind(f"{path}: cannot be read ({error.strerror or error})")


class _LocalFile(io.FileIO):
    """A file on this machine, whose errors name it."""

    def __init__(self, path: os.PathLike[str]) -> None:
        super().__init__(path)
        self._path = os.fspath(path)

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        with self._explained():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with self._explained():
            return super().readall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            reached("prep.read")
            yield
        except OSError as error:
            raise unreadable(self._path, error) from error


def open_binary(path: FilePath) -> BinaryIO:
    """Open a source file.

    Raises:
        BertdsError: it cannot be opened. Reading raises the same errors.
    """
    try:
        if isinstance(path, StoredPath):
            return path.open()
        return io.BufferedReader(_LocalFile(path), _BUFFER_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def file_facts(path: FilePath) -> os.stat_result | Facts:
    """Return size and time of a source file.

    Raises:
        BertdsError: the file is gone, or its folder cannot be read.
    """
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
