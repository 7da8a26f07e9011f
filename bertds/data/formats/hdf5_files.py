"""Opens HDF5 files of others: every byte that is read comes from the file itself.

HDF5 has three ways to make a dataset of bytes elsewhere: external storage (``/etc/passwd`` from
byte 0), links into other HDF5 files, and virtual datasets put together of other files. Whoever
prepared the file would choose which of the reader's files are read. All three are refused by name
before anything is opened or read, and so is a file that unpacks to very much more than it holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from bertds.errors import DataError

MAX_UNPACKED_RATIO = 400
"""Rows packed with gzip, all padding included, come to 10 to 60 times the file."""
FREE_BYTES = 64 << 20
"""A file may always unpack to this much: small files are mostly headers."""
_LINKS = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "a link into another file"}


@contextmanager
def open_hdf5(path: Path | str, kind: str = "HDF5") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Args:
        path: the file.
        kind: what it should be, for messages.

    Raises:
        DataError: it is missing, damaged, or no HDF5, now or while it is read.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Damage in the middle of a file shows only where HDF5 comes across it.
        raise DataError(f"{path}: damaged, or not {kind} ({_one_line(error)})") from error


def dataset(path: Path | str, file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return a dataset that is in the file itself, or None if there is none of this name.

    Args:
        path: for messages.
        file: as of :func:`open_hdf5`.
        name: of the dataset, in the root group.

    Raises:
        DataError: the name or its bytes lead out of the file, or it unpacks to far too much.
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
    # A chunk is unpacked whole, even where only a few of its rows are in the dataset.
    chunk = found.dtype.itemsize
    for length in found.chunks or ():
        chunk *= length
    unpacked = max(found.size * found.dtype.itemsize if found.shape else 0, chunk)
    if unpacked > allowed:
        raise DataError(
            f"{path}: {name} unpacks to {unpacked:,} bytes, but the file has {size:,}; at most "
            f"{MAX_UNPACKED_RATIO} times the file size (and {FREE_BYTES >> 20} MiB) is read. If "
            "this is expected, write it again without compression"
        )


def read_whole(path: Path | str, name: str, found: h5py.Dataset) -> np.ndarray:
    """Return a dataset's values, all of which are in the file.

    HDF5 gives zeros for a chunk that is not there, or that a damaged index does not find: rows
    without masks, or all of one label. Asked for the chunk as it is packed, it says so.

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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
