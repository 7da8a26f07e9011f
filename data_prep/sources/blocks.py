"""Reads any byte range of a file in blocks, and finds the records in them.

A file is cut into ranges of bytes, so that several workers can read one file at once. A record (a
page, a document) belongs to the range that holds its first byte. The reader of that range continues
beyond its end until the record ends. Therefore each block has a flag: does it belong to the range?
Files of several bzip2 streams (as Wikipedia publishes them) are cut at the stream boundaries.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Generator, Iterator
from typing import BinaryIO

from bertds.errors import DataError
from bertds.system.stored_path import FilePath
from data_prep.document import Limits
from data_prep.sources import formats
from data_prep.sources.limits import Unpacking, bounded, check_document
from data_prep.sources.reading import file_facts, open_binary

BLOCK_BYTES = 1 << 20
STREAM_HEADER = re.compile(rb"BZh[1-9]1AY&SY")
_STREAM_HEADER_BYTES = 10
# A file of several streams shows its second one within this many bytes.
_MULTISTREAM_PROBE_BYTES = 64 << 20
_TAIL_BYTES = 256
_XZ_MEMORY = 1 << 30
"""More than any preset of xz needs (-9: 65 MB); a file may ask for 4 GB."""

Block = tuple[bytes, bool]
DEFAULT_LIMITS = Limits()


def compression(path: FilePath) -> str:
    """Return the compression or wide encoding of a file, by its first bytes, not by its name.

    Returns:
        "bz2", "gz", "xz", "zst", one of :data:`formats.WIDE`, or "" for plain bytes.
    """
    with open_binary(path) as file:
        return formats.wrapping(file.read(formats.HEAD_BYTES))


def check_is_text(path: FilePath) -> None:
    """Refuse a file that holds no text, whether compressed or not.

    Raises:
        DataError: names the format that was found, and the remedy.
    """
    with open_binary(path) as file:
        head = file.read(formats.HEAD_BYTES)
    kind = formats.wrapping(head)
    if kind in formats.COMPRESSED:
        inside = next(_unpacked(path, kind, DEFAULT_LIMITS, formats.HEAD_BYTES), b"")
        _check_inside(path, kind, inside[: formats.HEAD_BYTES])
    else:
        _refuse(path, formats.not_text(head), "")


def _refuse(path: FilePath, what: str, packing: str) -> None:
    if what:
        inside = f" in {packing} data" if packing else ""
        name, semicolon, remedy = what.partition(";")
        raise DataError(f"{path}: not text but {name}{inside}{semicolon}{remedy}")


def plain_blocks(path: FilePath, start: int, end: int) -> Iterator[Block]:
    """Yield the bytes of ``[start, end)``, then those after them, flagged as not owned."""
    with open_binary(path) as file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
            yield block, True
            start += len(block)
        while block := file.read(BLOCK_BYTES):
            yield block, False


def is_multistream(path: FilePath) -> bool:
    """Return whether a .bz2 file holds several streams (looks at its first 64 MiB)."""
    with open_binary(path) as file:
        tail = file.read(1)[:0]
        file.seek(1)
        for _ in range(_MULTISTREAM_PROBE_BYTES // BLOCK_BYTES):
            block = file.read(BLOCK_BYTES)
            if not block:
                return False
            if STREAM_HEADER.search(tail + block):
                return True
            # One header's length is kept, since a header may be split between two blocks.
            tail = block[-_STREAM_HEADER_BYTES:]
    return False


def bz2_blocks(
    path: FilePath, start: int, end: int, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Block]:
    """Yield the contents of the streams that begin in ``[start, end)``, then of later ones.

    Raises:
        DataError: the file is damaged, ends inside a stream, or unpacks to more than the limits.
    """
    counted = Unpacking(path, limits)
    with open_binary(path) as file:
        stream_start = start if start == 0 else _next_stream(file, start, end)
        if stream_start is None:
            return
        file.seek(stream_start)
        decompressor = bz2.BZ2Decompressor()
        data = b""
        first = read_to = stream_start
        try:
            while True:
                if not data and decompressor.needs_input:
                    data = file.read(BLOCK_BYTES)
                    read_to += len(data)
                    if not data:
                        raise DataError(
                            f"{path}: truncated: it ends inside a bzip2 stream; download it again"
                        )
                block = decompressor.decompress(data, BLOCK_BYTES)
                data = b""
                if block:
                    counted.add(len(block), read_to - first)
                    yield block, stream_start < end
                # A stream ended. The next one begins in the bytes left over, after zero padding.
                if decompressor.eof:
                    data = decompressor.unused_data
                    while not data.strip(b"\0"):
                        data = file.read(BLOCK_BYTES)
                        read_to += len(data)
                        if not data:
                            return
                    # The flag of the following blocks depends on where this stream begins.
                    stream_start = read_to - len(data)
                    decompressor = bz2.BZ2Decompressor()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged bzip2 data ({error}); download it again") from error


def _next_stream(file: BinaryIO, start: int, end: int) -> int | None:
    """Return where the first stream at or after ``start`` begins, if before ``end``."""
    file.seek(start)
    tail = b""
    position = start
    # A header that begins before `end` may reach beyond it.
    while position < end + _STREAM_HEADER_BYTES:
        block = file.read(BLOCK_BYTES)
        if not block:
            return None
        match = STREAM_HEADER.search(tail + block)
        if match:
            found = position - len(tail) + match.start()
            return found if found < end else None
        position += len(block)
        tail = (tail + block)[-_STREAM_HEADER_BYTES + 1 :]
    return None


def whole_blocks(path: FilePath, limits: Limits = DEFAULT_LIMITS) -> Iterator[Block]:
    """Yield the contents of a file, decompressed, and converted to UTF-8 from UTF-16 or UTF-32.

    Raises:
        DataError: the file is damaged or truncated, is not text, or unpacks beyond the limits.
    """
    kind = compression(path)
    blocks = _unpacked(path, kind, limits)
    # The first block shows what the compressed data holds; it is put back before the others.
    head = next(blocks, b"")
    inner = _check_inside(path, kind, head[: formats.HEAD_BYTES])
    both: Iterator[bytes] = itertools.chain([head] if head else [], blocks)
    if inner in formats.WIDE:
        both = formats.as_utf8(both, inner)
    for block in both:
        yield block, True


def _check_inside(path: FilePath, kind: str, head: bytes) -> str:
    """Refuse contents that are not text; return the wide encoding of the others, or ""."""
    packing = kind if kind in formats.COMPRESSED else ""
    inner = formats.wrapping(head)
    if packing and inner in formats.COMPRESSED:
        raise DataError(
            f"{path}: not text but {inner} data in {packing} data; unpack the outer layer first"
        )
    _refuse(path, formats.not_text(head), packing)
    return inner


def _unpacked(
    path: FilePath, kind: str, limits: Limits, size: int = BLOCK_BYTES
) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, in blocks of about ``size``."""
    try:
        if kind == "bz2":
            yield from (block for block, _ in bz2_blocks(path, 0, 1 << 62, limits))
        elif kind == "xz":
            yield from bounded(path, _xz_blocks(path), limits)
        elif kind in ("gz", "zst"):
            with gzip.open(open_binary(path)) if kind == "gz" else _open_zstandard(path) as file:
                yield from bounded(path, iter(lambda: file.read(size), b""), limits)
        else:
            yield from (block for block, _ in plain_blocks(path, 0, file_facts(path).st_size))
    except EOFError as error:
        raise DataError(
            f"{path}: truncated: the compressed data ends too early; download it again"
        ) from error
    # The decompressors' own errors: open_binary reports those of the system.
    except (OSError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        raise DataError(f"{path}: damaged ({error}); download it again") from error


def _xz_blocks(path: FilePath) -> Iterator[bytes]:
    """Yield the contents of the streams of an .xz or .lzma file.

    ``lzma.open`` is not used: it sets no limit on the memory that a file may request.
    """
    with open_binary(path) as file:
        data = b""
        while True:
            decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            while not decompressor.eof:
                if not data and decompressor.needs_input and not (data := file.read(BLOCK_BYTES)):
                    raise EOFError
                if block := decompressor.decompress(data, BLOCK_BYTES):
                    yield block
                data = b""
            data = decompressor.unused_data.lstrip(b"\0")  # padding between streams
            while not data:
                if not (data := file.read(BLOCK_BYTES)):
                    return
                data = data.lstrip(b"\0")


def _open_zstandard(path: FilePath) -> BinaryIO:
    try:
        from compression import zstd  # Python 3.14

        return zstd.open(open_binary(path), "rb")
    except ImportError:
        pass
    try:
        import pyarrow

        return pyarrow.CompressedInputStream(open_binary(path), "zstd")
    except ImportError as error:
        raise DataError(
            f"{path}: reading .zst requires pyarrow; install it with: pip install pyarrow"
        ) from error


def records(
    blocks: Iterator[Block],
    opening: bytes,
    closing: bytes,
    path: FilePath,
    limits: Limits = DEFAULT_LIMITS,
) -> Generator[bytes, None, bytes]:
    """Yield each record ``opening ... closing`` whose first byte is owned.

    Returns:
        The last bytes of the file if the blocks were read to their end, else ``b""``.

    Raises:
        DataError: the file ends inside a record, or a record is too large.
    """
    buffer = b""
    offset = 0  # of buffer[0] in the blocks
    owned_end: int | None = None
    at = 0
    while True:
        start = buffer.find(opening, at)
        if start < 0:
            # An opening may be split between this block and the next.
            next_start = max(at, len(buffer) - len(opening) + 1)
            # Every later record begins in another worker's range.
            if owned_end is not None and offset + next_start >= owned_end:
                return b""
            block, owned = next(blocks, (b"", True))
            if not block:
                return buffer[-_TAIL_BYTES:]
            if not owned and owned_end is None:
                owned_end = offset + len(buffer)
            # The last bytes stay in the buffer, because the caller checks how the file ends.
            kept = max(0, min(next_start, len(buffer) - _TAIL_BYTES))
            offset += kept
            buffer = buffer[kept:] + block
            at = next_start - kept
            continue
        if owned_end is not None and offset + start >= owned_end:
            return b""
        end = buffer.find(closing, start)
        if end < 0:
            # The record continues in later blocks.
            offset += start
            buffer, end, foreign = _until(blocks, buffer[start:], closing, path, limits)
            start = 0
            if foreign is not None and owned_end is None:
                owned_end = offset + foreign
        at = end + len(closing)
        yield buffer[start:at]


def _until(
    blocks: Iterator[Block], begun: bytes, closing: bytes, path: FilePath, limits: Limits
) -> tuple[bytes, int, int | None]:
    """Read on until a record closes, in time linear in its length.

    Args:
        blocks: the blocks that follow.
        begun: the beginning of the record, without the closing.
        closing: the bytes that end the record.
        path: for messages.
        limits: the maximum length of a record.

    Returns:
        All bytes that were read, after ``begun``; the offset of the closing in them; and the offset
        of the first block that is not owned, or None.

    Raises:
        DataError: the file ends first, or the record is too large.
    """
    parts, size = [begun], len(begun)
    reach = len(closing) - 1
    tail = begun[-reach:]
    foreign: int | None = None
    while True:
        block, owned = next(blocks, (b"", True))
        if not block:
            raise DataError(
                f"{path}: truncated: it ends inside a record ({closing.decode()} expected); "
                "download the file again"
            )
        if not owned and foreign is None:
            foreign = size
        # Only the new block is searched, with enough of the bytes before it for a closing that is
        # split.
        window = tail + block
        found = window.find(closing)
        parts.append(block)
        if found >= 0:
            return b"".join(parts), size - len(tail) + found, foreign
        size += len(block)
        check_document(path, size, limits)
        tail = window[-reach:]
