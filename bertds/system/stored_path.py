"""A file in a store, with the methods of a path that file readers use."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from bertds.system import storage


class StoredFile(io.RawIOBase):
    """A file in a store, read by ranges; each request is repeated until it succeeds.

    Args:
        url: of the file.
        size: in bytes.
    """

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self.url, self.size, self._place = url, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; see :meth:`io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the bytes of at most one request."""
        start = self._place
        end = min(start + len(buffer), start + storage.REQUEST_BYTES, self.size)
        if end <= start:
            return 0
        data = storage.insist(lambda: storage.read_range(self.url, start, end, self.size), self.url)
        buffer[: len(data)] = data
        self._place = end
        return len(data)


class Facts(NamedTuple):
    """A file's properties in a store, with the names of ``os.stat_result``."""

    st_size: int
    st_mtime_ns: int
    """Not a time: a number that changes when the file changes."""


@dataclass(frozen=True, slots=True)
class StoredPath:
    """A file in a store.

    Args:
        url: its URL.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        return urlsplit(self.url).path.rpartition("/")[2] or urlsplit(self.url).netloc

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return Path(self.name).stem

    @property
    def parent(self) -> StoredPath:
        """The folder above."""
        return self._with_path(urlsplit(self.url).path.rpartition("/")[0])

    def with_name(self, name: str) -> StoredPath:
        """Return the file of another name in the same folder."""
        return self._with_path(f"{urlsplit(self.url).path.rpartition('/')[0]}/{name}")

    def _with_path(self, path: str) -> StoredPath:
        return StoredPath(urlunsplit(urlsplit(self.url)._replace(path=path)))

    def resolve(self) -> StoredPath:
        """Return itself: a URL is absolute."""
        return self

    def is_file(self) -> bool:
        """Return whether the store has the file."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> Facts:
        """Return size and state.

        Raises:
            FileNotFoundError, DataError, StoreError: see :func:`storage.insist`.
        """
        return _facts(self.url)

    def open(self) -> BufferedReader:
        """Open the file for reading; each request is repeated until it succeeds."""
        raw = StoredFile(self.url, self.stat().st_size)
        return BufferedReader(raw, buffer_size=4 << 20)


FilePath: TypeAlias = Path | StoredPath


def file_path(text: str) -> FilePath:
    """Return a local path, or a file in a store if the text is a URL."""
    return StoredPath(text) if storage.is_url(text) else Path(text)


@lru_cache(maxsize=4096)
def _facts(url: str) -> Facts:
    # Asked once per process: a file that is being read must not change anyway.
    def request() -> Facts:
        store, name = storage.open_store(url)
        found = store.info(name)
        if found.get("type") == "directory" or found.get("size") is None:
            raise FileNotFoundError(name)
        keys = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated")
        state = " ".join(str(found[key]) for key in keys if found.get(key))
        return Facts(int(found["size"]), zlib.crc32(state.encode()))

    return storage.insist(request, url)
