"""Files that are complete or invisible: atomic writes and checksums.

A file is written under a temporary name in its folder, flushed to the disk, and renamed. A crash at
any moment leaves the whole old file, the whole new file, or none, and at most a ``.tmp-*`` file
that is never read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertds.errors import BertdsError, ConfigError
from bertds.system.fault_points import passed

TEMPORARY_PREFIX = ".tmp-"


def temporary_name(path: Path) -> Path:
    """Return the name under which ``path`` is written before it is published.

    It contains host and process: processes on several hosts may write to one shared folder, and in
    containers many of them have the same process id.
    """
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{socket.gethostname()}.{os.getpid()}")


def sync_file(path: Path) -> None:
    """Flush a file's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; on success flush it and rename it to ``path``.

    Args:
        path: the final name. Its folder must exist.
        durable: False skips the flush, which can take longer than the writing. The file then
            survives the death of this process, but maybe not a power failure. Use it for working
            files whose size and checksum are checked before they are used.

    Yields:
        The temporary path, in the same folder. If the block raises, it is removed.

    Raises:
        BertdsError: the disk is full or the folder cannot be written; names ``path``.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        # A file with this name is a left-over, or a link that another user created as a trap.
        temporary.unlink(missing_ok=True)
        yield temporary
        if durable:
            sync_file(temporary)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # for example if the folder is a file
            temporary.unlink(missing_ok=True)
        if (cause := os_error_of(error)) is not None:
            raise explain_os_error(cause, path) from error
        raise


def check_file_place(path: Path | str) -> None:
    """Check, before any work, that a file can be written under the name that --out gives.

    Raises:
        ConfigError: the name is that of a folder, or its folder is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: {path.parent} is not a folder")


_OF_RUST = re.compile(r"\(os error (\d+)\)")


def os_error_of(error: BaseException) -> OSError | None:
    """Return an error of the operating system, or the one that an error is about; else None.

    Libraries in Rust (safetensors, tokenizers) raise exceptions of their own, and give its number
    in the text. torch.save raises one of its own while it handles that of a full disk.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, BertdsError):
        return None
    if found := _OF_RUST.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    before = error.__cause__ or error.__context__
    return before if isinstance(before, OSError) and before.errno in DISK_FULL else None


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
WRONG_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""A file in place of a folder, or the reverse, and similar."""


def explain_os_error(error: OSError, path: Path) -> BertdsError:
    """Convert a full disk, a refused write or a wrong path to an error that names the file."""
    if error.errno in DISK_FULL:
        return BertdsError(
            f"{path}: the disk is full; free some space and run the same command again"
        )
    if error.errno in NOT_ALLOWED:
        return BertdsError(f"{path}: cannot be written ({error.strerror})")
    if error.errno in WRONG_PATH:
        return ConfigError(f"{path}: cannot be used here ({error.strerror})")
    return BertdsError(f"{path}: {error.strerror or error}")


def write_text(path: Path | str, text: str, *, durable: bool = True) -> None:
    """Write a small text file atomically; ``durable`` as in :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, text: str) -> None:
    """Append one line to a file.

    Raises:
        BertdsError: the disk is full or the file cannot be written; names ``path``.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_json(path: Path | str, value: object, *, durable: bool = True) -> None:
    """Write a JSON file atomically, with keys in the given order and a final newline.

    ``durable`` as in :func:`atomic_path`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable=durable)


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Return how many bytes an ordinary user can still write to the disk of ``folder``."""
    stats = os.statvfs(folder)
    return passed("disk.free", stats.f_bavail * stats.f_frsize)


def remove_leftovers(folder: Path) -> int:
    """Remove the ``.tmp-*`` files of earlier, killed processes in ``folder``; return their number.

    Call it only while holding the folder's lock.
    """
    count = 0
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if entry.is_file():
            entry.unlink(missing_ok=True)
            count += 1
    return count
