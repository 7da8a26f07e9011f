"""Bounds on the unpacked size of a file, and on the size of one document.

A few kilobytes of gzip, bzip2, xz or zstd can hold gigabytes of the same byte, on one line or in
one page. Each reader counts while it reads. When a bound is exceeded it stops, with a message that
names the file, the quantity, and the option that raises the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from bertds.errors import DataError
from bertds.system.stored_path import FilePath
from data_prep.document import Limits

FREE_BYTES = 16 << 20
"""Unpacked size that is always allowed: short files can have a far higher ratio than long ones."""


class Unpacking:
    """Counts the bytes that a compressed file, or a part of one, unpacks to."""

    def __init__(self, path: FilePath, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.unpacked = 0

    def add(self, unpacked: int, packed: int) -> None:
        """Count a block.

        Args:
            unpacked: bytes of the block.
            packed: bytes of the compressed file that have been read up to here.

        Raises:
            DataError: the ratio is above the limit, which text does not reach.
        """
        self.unpacked += unpacked
        ratio = self.limits.unpack_ratio
        if self.unpacked > FREE_BYTES + ratio * packed:
            raise DataError(
                f"{self.path}: unpacks to more than {ratio} times its {packed:,} bytes; if that "
                "is expected, raise --max-unpack-ratio"
            )


def bounded(path: FilePath, blocks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """Yield the blocks that a whole compressed file unpacks to, up to the bound."""
    size = path.stat().st_size
    counted = Unpacking(path, limits)
    for block in blocks:
        counted.add(len(block), size)
        yield block


def check_document(path: FilePath | str, size: int, limits: Limits) -> None:
    """Refuse a document, or the part of one that has been read, that is too large.

    Raises:
        DataError: names the file and the option.
    """
    if size > limits.document_bytes:
        raise DataError(
            f"{path}: a document of more than {limits.document_bytes >> 20:,} MB; if that is "
            "expected, raise --max-document-mb"
        )


def joined(path: FilePath, blocks: Iterator[tuple[bytes, bool]], limits: Limits) -> bytes:
    """Return the bytes of a file that is one document.

    Raises:
        DataError: the document is larger than the limit.
    """
    parts, size = [], 0
    for block, _ in blocks:
        size += len(block)
        check_document(path, size, limits)
        parts.append(block)
    return b"".join(parts)
