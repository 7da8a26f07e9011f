"""Plain text: documents separated by blank lines, or one document per line (``--text-layout``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from bertds.system.stored_path import FilePath
from data_prep.clean import clean_paragraphs
from data_prep.document import BAD_UTF8, EMPTY, Document, Limits, Unit
from data_prep.sources.blocks import DEFAULT_LIMITS, compression, whole_blocks
from data_prep.sources.charsets import switches_sets
from data_prep.sources.limits import check_document
from data_prep.sources.reading import open_binary

LAYOUTS = ("blank-line", "line")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GROUP = 1 << 16
"""Bytes of lines that are read in one call."""


def read_text(unit: Unit) -> Iterator[Document]:
    """Yield the documents that begin in the unit; ``options`` holds the layout."""
    name = unit.path.name
    for number, document in enumerate(raw_documents(unit), 1):
        yield text_document(document, f"{name}: document {number} from byte {unit.start}")


def text_document(data: bytes, title: str = "") -> Document:
    """Decode and clean one document; each line is a paragraph."""
    # Such text consists of ASCII bytes only, so decoding it as UTF-8 would succeed.
    if switches_sets(data):
        return Document("", BAD_UTF8, title)
    try:
        text = clean_paragraphs(data.decode("utf-8"))
    except UnicodeDecodeError:
        return Document("", BAD_UTF8, title)
    return Document(text, "" if text else EMPTY, title)


def raw_documents(unit: Unit) -> Iterator[bytes]:
    """Yield the bytes of each document that begins in the unit."""
    if unit.options[0] == "line":
        yield from (line for line, owned in unit_lines(unit) if owned)
        return
    current: list[bytes] = []
    size = 0
    skipping = False  # inside a document that began in the previous unit
    first = True
    for lines, owned in _line_groups(unit, with_previous=True):
        for line in lines:
            blank = not line or line.isspace()
            if first:
                # The line before the unit shows whether a document of the previous unit continues.
                first, skipping = False, not blank
            elif blank:
                skipping = False
                if current:
                    yield b"".join(current)
                    current, size = [], 0
                # The unit ends with the first blank line after its last byte.
                if not owned:
                    return
            elif not skipping:
                if not current and not owned:
                    return
                current.append(line)
                size += len(line)
                check_document(unit.path, size, unit.limits)
            elif not owned:
                return
    if current:
        yield b"".join(current)


def unit_lines(unit: Unit) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines that begin in the unit, then later ones flagged as not owned.

    The unit is bytes ``[start, end)`` of a plain file, or a whole compressed one.
    """
    for lines, owned in _line_groups(unit):
        for line in lines:
            yield line, owned


def _line_groups(unit: Unit, *, with_previous: bool = False) -> Iterator[tuple[list[bytes], bool]]:
    """Yield the lines of :func:`unit_lines`, many at a time.

    With ``with_previous``, the line before the unit comes first (empty at the beginning of a file).
    """
    if compression(unit.path):
        if with_previous:
            yield [b""], True
        for line in compressed_lines(unit.path, unit.limits):
            yield [line], True
        return
    with open_binary(unit.path) as file:
        previous = b""
        if unit.start > 0:
            previous = _line_across(file, unit.start)
        else:
            file.seek(3 if file.read(3) == _BYTE_ORDER_MARK else 0)
        if with_previous:
            yield [previous], True
        while (left := unit.end - file.tell()) > 0:
            # readlines stops once it has more than this number of bytes, so that its last line
            # also begins within the unit. 0 would mean all lines.
            few = min(left, _GROUP) - 1
            lines = file.readlines(few) if few else [file.readline()]
            if not any(lines):  # the file has become shorter
                return
            yield lines, True
        # Later lines are read singly, since the caller stops after a few.
        for line in file:
            yield [line], False


def _line_across(file: BinaryIO, start: int) -> bytes:
    """Return the line that contains byte ``start - 1``, and leave the file position after it."""
    position = start - 1
    # The beginning of that line is found by reading backwards in steps of 64 KiB.
    piece = b""
    while position > 0:
        step = min(position, 1 << 16)
        file.seek(position - step)
        piece = file.read(step)
        newline = piece.rfind(b"\n")
        if newline >= 0:
            position = position - step + newline + 1
            break
        position -= step
    file.seek(position)
    return file.readline()


def compressed_lines(path: FilePath, limits: Limits = DEFAULT_LIMITS) -> Iterator[bytes]:
    """Yield the lines of a compressed file.

    Raises:
        DataError: a line is too large, or the file unpacks to more than the limits.
    """
    rest: list[bytes] = []
    size = 0
    first = True
    for block, _ in whole_blocks(path, limits):
        if first:
            block, first = block.removeprefix(_BYTE_ORDER_MARK), False
        # The last piece of a block has no line end yet; it is joined with the next block.
        lines = block.split(b"\n")
        rest.append(lines[0])
        size += len(lines[0])
        check_document(path, size, limits)
        if len(lines) > 1:
            yield b"".join(rest) + b"\n"
            for line in lines[1:-1]:
                yield line + b"\n"
            rest = [lines[-1]]
            size = len(rest[0])
    last = b"".join(rest)
    if last:
        yield last
