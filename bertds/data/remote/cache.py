"""Verified shards on this machine's disk: one copy for all processes, within a size limit.

```text
CACHE/shards/
  lock                 held briefly by a process that makes room or begins a file; contains the
                       number of bytes in the cache, or more
  SHA256.h5            a complete, verified shard; readers hold a shared lock on it
  .part-SHA256         one in transfer, already of its full size; its fetcher holds its lock
  outline-ID           sentence lengths (outlines.py); its users hold a shared lock on it
```

The limit counts the full sizes of all files, so room is reserved before the first byte arrives. All
locks are ``flock``: they end with the process that holds them, however it ends. A file that another
process reads is never evicted, because its room would not be free before the reader closes it.

Checking thousands of files takes 0.1 s. It is done only when the number in ``lock`` shows that
there is no room, and a little more than necessary is then evicted. The number grows before a file
does and shrinks after it. So a killed process leaves it too high, never too low, and the next check
corrects it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertds.errors import BertdsError
from bertds.system.atomic_files import explain_os_error
from bertds.system.storage import REQUEST_BYTES

PART = ".part-"
OUTLINE = "outline-"
_SPARE = 64
"""When files are evicted, an additional 1/64 of the limit is made free."""


class NoRoom(Exception):
    """Every file in the cache is in use, or is needed sooner."""


class Busy(Exception):
    """Another process is fetching the same file."""


class WrongBytes(Exception):
    """The received data does not have the checksum of the manifest."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"SHA-256 {sha256[:12]}...")
        self.sha256 = sha256


def private_folder(folder: Path) -> None:
    """Create a folder for this user alone; refuse one of another user, or a link to one.

    A name in ``/tmp`` is predictable. A user who creates it first could replace the files in it,
    which are not verified again, or redirect what is written.

    Raises:
        BertdsError: it cannot be created, or belongs to another user.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if {os.lstat(folder).st_uid, folder.stat().st_uid} != {os.geteuid()}:
            raise BertdsError(f"{folder}: belongs to another user; set data.cache_dir")
    except OSError as error:
        raise explain_os_error(error, folder) from error


class ShardCache:
    """The cache of one machine.

    Args:
        folder: created if necessary, for this user alone.
        limit: the maximum total size of its files, in bytes.

    Raises:
        BertdsError: the folder cannot be created, or belongs to another user.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        private_folder(folder)
        try:
            os.close(self._open_lock())
        except OSError as error:
            raise explain_os_error(error, folder) from error

    def file(self, sha256: str) -> Path:
        """Return the path of a shard in the cache."""
        return self.folder / f"{sha256}.h5"

    def pin(self, sha256: str) -> int | None:
        """Open a shard and keep it from being evicted until the descriptor is closed.

        Returns:
            The descriptor, or None if the shard is not in the cache.
        """
        path = self.file(sha256)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:  # a folder, or a file that may not be read
            raise explain_os_error(error, path) from error
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _same(descriptor, path):
            self.touch(descriptor)
            return descriptor
        os.close(descriptor)  # evicted between the two calls
        return None

    def holds(self, sha256: str) -> bool:
        """Return whether a shard is in the cache at this moment."""
        return self.file(sha256).exists()

    @staticmethod
    def touch(file: int | Path) -> None:
        """Set a file's time of last use to now."""
        with suppress(OSError):
            stat = os.stat(file)
            os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))

    def drop(self, sha256: str, descriptor: int) -> None:
        """Remove a shard that turned out to be damaged, and release its pin."""
        self._remove(self.file(sha256), descriptor)

    def fetch(
        self,
        sha256: str,
        size: int,
        read: Callable[[int, int], bytes],
        keep: frozenset[str] = frozenset(),
    ) -> int:
        """Fetch a shard into the cache and verify it.

        Args:
            sha256: of its contents.
            size: in bytes.
            read: returns the bytes ``[start, end)``.
            keep: shards that must not be evicted for it.

        Returns:
            A descriptor that pins it; see :meth:`pin`.

        Raises:
            NoRoom, Busy: not possible now.
            WrongBytes: the data was damaged; nothing of it is kept.
            BertdsError: the disk is full.
            Exception: any error of ``read``.
        """
        part = self.folder / f"{PART}{sha256}"
        with self._alone() as lock:
            if (there := self.pin(sha256)) is not None:
                return there
            descriptor = _reserve(part, lambda: self._make_room(lock, size, part, keep), size)
        try:
            digest = hashlib.sha256()
            for start in range(0, size, REQUEST_BYTES):
                data = read(start, min(start + REQUEST_BYTES, size))
                os.pwrite(descriptor, data, start)
                digest.update(data)
            if (found := digest.hexdigest()) != sha256:
                raise WrongBytes(found)
            os.fsync(descriptor)
            # Renamed under the lock, so that no process sees the shard before it is pinned.
            with self._alone():
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.rename(part, self.file(sha256))
            self.touch(descriptor)
            return descriptor
        # A full disk gets a message of its own; the store's errors are passed on.
        except OSError as error:
            self._remove(part, descriptor)
            if error.filename is None and error.errno in _OF_THE_DISK:
                raise explain_os_error(error, self.folder) from error
            raise
        except BaseException:
            self._remove(part, descriptor)
            raise

    def reserve(self, name: str, size: int) -> int:
        """Open a file of ``size`` bytes that is kept while its descriptor is open.

        Raises:
            NoRoom: it does not fit.
            BertdsError: the disk is full.
        """
        path = self.folder / name
        with self._alone() as lock:
            # A file of another size is from an interrupted attempt.
            if not path.exists() or path.stat().st_size != size:
                self._make_room(lock, size, path, frozenset())
                path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # The file is mapped: on a full disk, writing to a hole would kill the process.
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                path.unlink(missing_ok=True)  # its bytes still count until the next check
                os.close(descriptor)
                raise explain_os_error(error, path) from error
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        self.touch(descriptor)
        return descriptor

    def _open_lock(self) -> int:
        with suppress(FileExistsError):  # recreated if a cleaner has removed it
            self.folder.mkdir(parents=True, mode=0o700)
        return os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Hold the lock; yields its descriptor."""
        # Opened each time: threads of one process exclude each other too.
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _remove(self, path: Path, descriptor: int) -> None:
        """Remove an open file if its name still refers to it, and close it."""
        with self._alone() as lock:
            if _same(descriptor, path):
                size = os.fstat(descriptor).st_size
                path.unlink(missing_ok=True)
                if (used := _read_number(lock)) is not None:
                    _write_number(lock, used - size)
        os.close(descriptor)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for entry in os.scandir(self.folder):
            if entry.name != "lock":
                with suppress(FileNotFoundError):
                    found.append((Path(entry.path), entry.stat()))
        return found

    def _make_room(self, lock: int, size: int, own: Path, keep: frozenset[str]) -> None:
        """Reserve ``size`` bytes for a file, evicting others if necessary.

        The least recently used files are evicted first. An older file of the same name does not
        count. The caller holds the lock.
        """
        used = _read_number(lock)
        if used is None or used + size > self.limit:
            files = [(path, stat) for path, stat in self._files() if path.name != own.name]
            used = sum(stat.st_size for _, stat in files)
            if used + size > self.limit:
                used = self._evict(files, used, self.limit - size, keep)
        # Written before the file grows; see the module docstring.
        _write_number(lock, used + size)

    def _evict(
        self, files: list[tuple[Path, os.stat_result]], used: int, most: int, keep: frozenset[str]
    ) -> int:
        """Evict until at most ``most`` bytes are used, if possible less; return the number."""
        # First the remains of killed fetchers, then by time of last use.
        files.sort(key=lambda one: (not one[0].name.startswith(PART), one[1].st_atime_ns))
        for path, stat in files:
            if used <= most - self.limit // _SPARE:
                break
            if path.stem not in keep and _unlink_unused(path):
                used -= stat.st_size
        if used > most:
            raise NoRoom
        return used


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def _same(descriptor: int, path: Path) -> bool:
    """Return whether a name still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _reserve(part: Path, make_room: Callable[[], None], size: int) -> int:
    """Reserve the room of a file that will be fetched. The caller holds the cache's lock."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        try:
            make_room()
            os.ftruncate(descriptor, size)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_number(lock: int) -> int | None:
    """Return the number of :func:`_write_number`; None if it is missing or damaged."""
    text = os.pread(lock, 64, 0)
    return int(text) if text.endswith(b"\n") and text.strip().isdigit() else None


def _write_number(lock: int, number: int) -> None:
    os.pwrite(lock, b"%020d\n" % max(number, 0), 0)


def _unlink_unused(path: Path) -> bool:
    """Remove a file unless a process holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
