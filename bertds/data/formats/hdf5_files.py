"""Writes HDF5 files, and opens those of unknown origin.

Every byte that is read comes from the file itself.

HDF5 has three ways to make a dataset from bytes elsewhere: external storage (``/etc/passwd`` from
byte 0), links into other HDF5 files, and virtual datasets composed of other files. The author of a
file could thereby choose which of the reader's files are read. All three are refused by name before
anything is opened or read. A file that unpacks to far more than its size is refused too.

Texts of variable length are stored in heaps of the file. HDF5 2.0.0 does not return from reading a
heap with an entry of 0 bytes, and no signal interrupts it. Heaps are therefore checked before HDF5
reads them, and datasets of such texts are refused.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from bertds.errors import DataError, short_reason

MAX_UNPACKED_RATIO = 400
"""Rows packed with gzip, including padding, unpack to 10 to 60 times the size of the file."""
FREE_BYTES = 64 << 20
"""A file may always unpack to this number of bytes: small files are mostly headers."""
_MEMORY_STEP = 1 << 20
"""Bytes by which a file in memory grows."""
_HEAP = b"GCOL\x01"
_HEAP_HEADER = 16
"""Signature, version, three reserved bytes, and the size of the whole heap."""
_ENTRY_HEADER = 16
"""The header of an entry in a heap: number, references, four reserved bytes, size."""
_MAX_ENTRIES = 100_000
"""A token shard's single heap has three entries. The limit bounds the time that heaps inside heaps
can take."""
_LINKS = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "a link into another file"}


@contextmanager
def open_hdf5(
    source: Path | str | io.RawIOBase, kind: str = "HDF5", path: Path | str = ""
) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Args:
        source: the file, by name or open.
        kind: the expected content, for messages.
        path: the name of a file object, for messages.

    Raises:
        DataError: it is missing, cannot be read, is damaged or not HDF5, on opening or later.
    """
    path = path or str(source)
    try:
        with h5py.File(source, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # An error of the system has a number, one of the format has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        # HDF5 notices damage in the middle of a file only when it reads that part.
        raise DataError(f"{path}: damaged, or not {kind} ({short_reason(error)})") from error


@contextmanager
def new_hdf5(path: Path, **layout: object) -> Iterator[h5py.File]:
    """Yield an empty HDF5 file, and write it to ``path`` at the end.

    The file is made in memory, with the same bytes as on a disk. If the disk is full, HDF5 itself
    raises a RuntimeError that does not name the reason reliably, cannot close the file any more,
    and crashes the process when it exits.

    Args:
        path: where to write; replaced if it exists.
        layout: further arguments of ``h5py.File``.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    memory = {"driver": "core", "backing_store": False, "block_size": _MEMORY_STEP}
    with h5py.File(path, "w", **memory, **layout) as file:
        yield file
        file.flush()
        path.write_bytes(file.id.get_file_image())


def dataset(path: Path | str, file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return a dataset that is in the file itself, or None if there is none of this name.

    Args:
        path: for messages.
        file: from :func:`open_hdf5`.
        name: of the dataset, in the root group.

    Raises:
        DataError: the name or its bytes refer to another file, it does not contain integers, or it
            unpacks to far too much.
    """
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if type(link) in _LINKS:
        raise DataError(
            f"{path}: {name} is {_LINKS[type(link)]}; only data in the file itself is read"
        )
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        return None
    # Checked first: for texts, HDF5 would read a heap to answer the other questions.
    if found.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is {found.dtype}, expected integers")
    if found.is_virtual:
        raise DataError(
            f"{path}: {name} is a virtual dataset, made of other files; only data in the file "
            "itself is read"
        )
    if found.id.get_create_plist().get_external_count():
        raise DataError(
            f"{path}: {name} has external storage; only data in the file itself is read"
        )
    _check_size(path, file, name, found)
    return found


def _check_size(path: Path | str, file: h5py.File, name: str, found: h5py.Dataset) -> None:
    size = file.id.get_filesize()
    allowed = FREE_BYTES + MAX_UNPACKED_RATIO * size
    # A chunk is unpacked as a whole, even if only a few of its rows are in the dataset.
    chunk = found.dtype.itemsize
    for length in found.chunks or ():
        chunk *= length
    unpacked = max(found.size * found.dtype.itemsize if found.shape else 0, chunk)
    if unpacked > allowed:
        raise DataError(
            f"{path}: {name} unpacks to {unpacked:,} bytes, but the file has {size:,}; allowed: "
            f"{MAX_UNPACKED_RATIO} times the file size plus {FREE_BYTES >> 20} MiB. If this is "
            "expected, write the file again without compression"
        )


def attributes(
    path: Path | str, names: Collection[str], values: Sequence[tuple[int, int]]
) -> dict[str, object]:
    """Return attributes of a file's root group, without those that are missing or arrays.

    HDF5 is given the file with zeros in place of the values of its datasets. So all heaps that it
    can find are in the few bytes that remain, which are checked.

    Args:
        path: the file.
        names: of the attributes.
        values: the values of contiguous datasets: offset and number of bytes of each.

    Raises:
        DataError: the file or a heap is damaged.
    """
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        rest = _gaps(len(mapping), values)
        for begin, end in rest:
            _check_heaps(path, mapping, begin, end)
        with open_hdf5(_Excerpt(mapping, rest), "a token shard", path) as file:
            if file.id.get_create_plist().get_sizes() != (8, 8):
                raise DataError(f"{path}: not a token shard: its HDF5 offsets are not 8 bytes wide")
            return {
                name: file.attrs[name]
                for name in names
                if name in file.attrs and file.attrs.get_id(name).shape == ()
            }


def _gaps(size: int, taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return begin and end of each range of the file that is not the values of a dataset."""
    gaps, begin = [], 0
    for offset, length in sorted(taken):
        if begin < offset:
            gaps.append((begin, min(offset, size)))
        begin = max(begin, offset + length)
    return [*gaps, (begin, size)] if begin < size else gaps


def _check_heaps(path: Path | str, data: mmap.mmap, begin: int, end: int) -> None:
    """Check each global heap collection (HDF5's File Format Specification 3.0, section III.E)."""
    heap, seen = data.find(_HEAP, begin, end), 0
    while heap >= 0:
        stop = heap + int.from_bytes(data[heap + 8 : heap + _HEAP_HEADER], "little")
        entry = heap + _HEAP_HEADER
        while entry + _ENTRY_HEADER <= stop <= end:
            number = int.from_bytes(data[entry : entry + 2], "little")
            length = int.from_bytes(data[entry + 8 : entry + _ENTRY_HEADER], "little")
            # Entry 0 is the free space; its length includes its header.
            if number:
                length = _ENTRY_HEADER + -(-length // 8) * 8
            seen += 1
            if not _ENTRY_HEADER <= length <= stop - entry or seen > _MAX_ENTRIES:
                break
            entry += length
        if not stop - _ENTRY_HEADER < entry <= stop <= end:
            raise DataError(f"{path}: damaged: the heap at byte {heap} has an impossible entry")
        heap = data.find(_HEAP, heap + 1, end)


class _Excerpt(io.RawIOBase):
    """A file of which only some ranges are visible; the rest reads as zeros."""

    def __init__(self, data: mmap.mmap, shown: Sequence[tuple[int, int]]) -> None:
        self._data, self._shown = data, shown
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        begin, end = self._at, min(self._at + len(buffer), len(self._data))
        if end <= begin:
            return 0
        buffer[: end - begin] = bytes(end - begin)
        for first, last in self._shown:
            first, last = max(first, begin), min(last, end)
            if first < last:
                buffer[first - begin : last - begin] = self._data[first:last]
        self._at = end
        return end - begin


def read_whole(path: Path | str, name: str, found: h5py.Dataset) -> np.ndarray:
    """Return all values of a dataset, which must be in the file.

    HDF5 returns zeros for a chunk that is missing, or that a damaged index does not find: rows
    without masks, or labels that are all 0. Asking for the packed chunk raises an error instead.

    Raises:
        DataError: a chunk is missing.
    """
    if found.chunks and found.size:
        sizes = zip(found.shape, found.chunks, strict=True)
        for corner in itertools.product(*(range(0, size, step) for size, step in sizes)):
            try:
                found.id.read_direct_chunk(corner)
            except (OSError, RuntimeError, ValueError):
                raise DataError(f"{path}: damaged: {name} has no data from {corner} on") from None
    values: np.ndarray = found[...]
    return values
