"""Verified shards on this machine's disk: one copy for all its processes, never over a bound.

```text
CACHE/shards/
  lock                 held for a moment by whoever makes room or begins a file; holds the number
                       of bytes in the cache, or more
  SHA256.h5            a whole, verified shard; readers hold a shared lock on it
  .part-SHA256         one on its way, already of its full size; its fetcher holds its lock
  outline-ID           lengths of sentences (outlines.py); its users hold a shared lock on it
```

The bound counts the full sizes of all files, so room is taken before the first byte comes. All
locks are ``flock``: they go with the process that holds them, whatever kills it. A file that
another process reads is never evicted, because its room would not come back before the reader's
end.

Looking at thousands of files takes 0.1 s, so it is done only when the number in
``lock`` says that there is no room, and a little more than needed is then evicted. The number grows
before a file does and shrinks after it, so a process that is killed leaves it too high, never too
low; the next look corrects it.
"""

from __future__ import annotations

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
"""When room is made, this part of the bound is made free with it."""


class NoRoom(Exception):
    """Everything in the cache is being read, or is needed sooner."""


class Busy(Exception):
    """Another process fetches this very file."""


class WrongBytes(Exception):
    """What came is not what the manifest says."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"SHA-256 {sha256[:12]}...")
        self.sha256 = sha256


def private_folder(folder: Path) -> None:
    """Make a folder for this user alone; one that another user made, or a link to it, is refused.

    A name in ``/tmp`` can be foreseen: whoever made it first could exchange the files in it, which
    are not verified again, or lead what is written to another place.

    Raises:
        BertdsError: it cannot be made, or is another user's.
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
        folder: where; made if need be, for this user alone.
        limit: the most bytes that its files have together.

    Raises:
        BertdsError: the folder cannot be made, or is another user's.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        private_folder(folder)
        try:
            os.close(self._open_lock())
        except OSError as error:
            raise explain_os_error(error, folder) from error

    def file(self, sha256: str) -> Path:
        """Return where a shard is when it is there."""
        return self.folder / f"{sha256}.h5"

    def pin(self, sha256: str) -> int | None:
        """Open a shard and keep it from being evicted until the descriptor is closed.

        Returns:
            The descriptor, or None if the shard is not there.
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
        """Return whether a shard is there at this moment."""
        return self.file(sha256).exists()

    @staticmethod
    def touch(file: int | Path) -> None:
        """Note that a file was used just now."""
        with suppress(OSError):
            stat = os.stat(file)
            os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))

    def drop(self, sha256: str, descriptor: int) -> None:
        """Remove a shard that turned out to be damaged, and give its pin back."""
        self._remove(self.file(sha256), descriptor)

    def fetch(
        self,
        sha256: str,
        size: int,
        read: Callable[[int, int], bytes],
        keep: frozenset[str] = frozenset(),
    ) -> int:
        """Bring a shard in, verified.

        Args:
            sha256: of its bytes.
            size: its bytes.
            read: returns the bytes ``[start, end)``.
            keep: shards that must not be evicted for it.

        Returns:
            A descriptor that pins it; see :meth:`pin`.

        Raises:
            NoRoom, Busy: not now.
            WrongBytes: it came damaged; nothing is kept of it.
            BertdsError: the disk is full.
            Exception: what ``read`` raised.
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
            with self._alone():
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.rename(part, self.file(sha256))
            self.touch(descriptor)
            return descriptor
        except OSError as error:
            self._remove(part, descriptor)
            if error.errno is not None and error.filename is None and error.errno in _OF_THE_DISK:
                raise explain_os_error(error, self.folder) from error
            raise
        except BaseException:
            self._remove(part, descriptor)
            raise

    def reserve(self, name: str, size: int) -> int:
        """Open a file of ``size`` bytes that stays while its descriptor is open.

        Raises:
            NoRoom: it does not fit.
            BertdsError: the disk is full.
        """
        path = self.folder / name
        with self._alone() as lock:
            if not path.exists() or path.stat().st_size != size:
                self._make_room(lock, size, path, frozenset())
                path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # It is mapped: where the disk is full, writing to a hole would end the process.
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                path.unlink(missing_ok=True)  # its bytes still count, until the next look
                os.close(descriptor)
                raise explain_os_error(error, path) from error
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        self.touch(descriptor)
        return descriptor

    def bytes_used(self) -> int:
        """Return the full sizes of all files, those on their way included."""
        return sum(stat.st_size for _, stat in self._files())

    def _open_lock(self) -> int:
        with suppress(FileExistsError):  # it is made again if a cleaner has removed it meanwhile
            self.folder.mkdir(parents=True, mode=0o700)
        return os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Hold the lock; gives its descriptor."""
        # Opened each time: threads of one process exclude each other too.
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _remove(self, path: Path, descriptor: int) -> None:
        """Remove an open file if it still has its name, and close it."""
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
        """Take ``size`` bytes for a file, evicting others if need be. The lock is held.

        What goes first is the least recently used. The file's own old self does not count.
        """
        used = _read_number(lock)
        if used is None or used + size > self.limit:
            files = [(path, stat) for path, stat in self._files() if path.name != own.name]
            used = sum(stat.st_size for _, stat in files)
            if used + size > self.limit:
                used = self._evict(files, used, self.limit - size, keep)
        # Before the file grows: see the top of this file.
        _write_number(lock, used + size)

    def _evict(
        self, files: list[tuple[Path, os.stat_result]], used: int, most: int, keep: frozenset[str]
    ) -> int:
        """Evict until ``most`` bytes are used, and a little more if it can be; return what is."""
        # First what fetchers that were killed left behind, then by the time of last use.
        files.sort(key=lambda one: (not one[0].name.startswith(PART), one[1].st_atime_ns))
        for path, stat in files:
            if used <= most - self.limit // _SPARE:
                break
            if path.stem not in keep and _unlink_unused(path):
                used -= stat.st_size
        if used > most:
            raise NoRoom
        return used


_OF_THE_DISK = frozenset({28, 122, 5, 30})
"""No space, over quota, input/output error, read-only."""


def _same(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _reserve(part: Path, make_room: Callable[[], None], size: int) -> int:
    """Take the room of a file that is about to come. The cache's lock is held."""
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
    """Return what :func:`_write_number` wrote; None if it is not there or damaged."""
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
