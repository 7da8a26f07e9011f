"""Plain text: documents separated by blank lines, or one document per line (``--text-layout``).

A line ends with LF, CR LF or CR (see :func:`line_feeds`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bertds.system.stored_path import FilePath
from data_prep.clean import clean_paragraphs, line_feeds
from data_prep.document import BAD_UTF8, EMPTY, Document, Limits, Unit
from data_prep.sources.blocks import Block, compression, plain_blocks, whole_blocks
from data_prep.sources.charsets import switches_sets
from data_prep.sources.limits import check_document
from data_prep.sources.reading import open_binary

LAYOUTS = ("blank-line", "line")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAYBE_BLANK = b" \t\xc2\xe2\xe3\xef"
"""First bytes of spaces in UTF-8, and of a byte order mark."""
_STEP = 1 << 16
_REST_OF_END = re.compile(rb"\r*\n")
_LONGEST_END = 64
"""Bytes around the beginning of a unit that show whether it is inside the end of a line."""


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
    """Yield the bytes of each document that begins in the unit, with line feeds as line ends."""
    groups = _line_groups(unit, any_end=True)
    if unit.options[0] == "line":
        yield from (line for line, owned in _without_first(groups) if owned)
        return
    current: list[bytes] = []
    size = 0
    skipping = False  # inside a document that began in the previous unit
    first = True
    for lines, owned in groups:
        for line in lines:
            blank = not line or line.isspace() or (line[0] in _MAYBE_BLANK and _is_blank(line))
            if first:
                # The line before the unit shows whether a document of the previous unit continues.
                first, skipping = False, not blank
            elif blank:
                skipping = False
                if current:
                    yield b"\n".join(current)
                    current, size = [], 0
                # The unit ends with the first blank line after its last byte.
                if not owned:
                    return
            elif not skipping:
                if not current and not owned:
                    return
                current.append(line)
                size += len(line) + 1
                check_document(unit.path, size, unit.limits)
            elif not owned:
                return
    if current:
        yield b"\n".join(current)


def _is_blank(line: bytes) -> bool:
    """Return whether a line has only spaces of any width (word processors write U+00A0) or marks.

    A byte order mark is inside a text if files were joined.
    """
    return not line.decode("utf-8", "replace").replace("\ufeff", "").strip()


def unit_lines(unit: Unit) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines that begin in the unit, then later ones flagged as not owned.

    The unit is bytes ``[start, end)`` of a plain file, or a whole compressed one. Only a line feed
    ends a line, as in JSON lines: a carriage return may be a space between the values of a record.
    """
    return _without_first(_line_groups(unit, any_end=False))


def _without_first(groups: Iterator[tuple[list[bytes], bool]]) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of groups singly, except for the line before the unit."""
    lines = ((line, owned) for group, owned in groups for line in group)
    next(lines, None)
    return lines


def _line_groups(unit: Unit, *, any_end: bool) -> Iterator[tuple[list[bytes], bool]]:
    """Yield lines without their ends, many at a time, with a flag: do they begin in the unit?

    The line before the unit comes first (empty at the beginning of a file), also with the flag.

    Args:
        unit: the unit.
        any_end: CR LF and CR end a line too, not only LF.
    """
    begin = 0
    if compression(unit.path):
        blocks = whole_blocks(unit.path, unit.limits)
    else:
        if unit.start > 0:
            begin = _begin_of_line_across(unit.path, unit.start, any_end)
        blocks = plain_blocks(unit.path, begin, unit.end)
    if unit.start == 0:
        yield [b""], True
    if begin == 0:
        blocks = _without_mark(blocks)
    if any_end:
        blocks = ((_line_feeds(block), owned) for block, owned in _cut_between_lines(blocks))
    yield from _lines(blocks, unit.path, unit.limits)


def _begin_of_line_across(path: FilePath, start: int, any_end: bool) -> int:
    """Return where the line that contains byte ``start - 1`` begins."""
    with open_binary(path) as file:
        # The end of this line does not count, of which some bytes may be at or after ``start``.
        first = max(0, start - _LONGEST_END)
        file.seek(first)
        before, after = file.read(start - first), file.read(_LONGEST_END)
        position = start - 1
        if any_end and (before.endswith(b"\n") or _REST_OF_END.match(after)):
            position = first + len(before.removesuffix(b"\n").rstrip(b"\r"))
        # The line is read backwards in steps of 64 KiB.
        while position > 0:
            step = min(position, _STEP)
            file.seek(position - step)
            piece = file.read(step)
            found = piece.rfind(b"\n")
            if any_end:
                found = max(found, piece.rfind(b"\r"))
            if found >= 0:
                return position - step + found + 1
            position -= step
    return 0


def _without_mark(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks of a file without a byte order mark at its beginning."""
    first, owned = next(blocks, (b"", True))
    yield first.removeprefix(_BYTE_ORDER_MARK), owned
    yield from blocks


def _cut_between_lines(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield blocks so that no end of a line (CR LF) is split between two."""
    last, owned = b"", True
    for block, next_owned in blocks:
        if last.endswith(b"\r") and (rest := _REST_OF_END.match(block)):
            last, block = last + rest[0], block[rest.end() :]
        yield last, owned
        last, owned = block, next_owned
    yield last, owned


def _line_feeds(data: bytes) -> bytes:
    """Return bytes in an encoding like UTF-8 with LF as the only line end."""
    # Latin-1 maps each byte to one character and back, so the rule need not be written for bytes.
    return line_feeds(data.decode("latin-1")).encode("latin-1") if b"\r" in data else data


def _lines(
    blocks: Iterator[Block], path: FilePath, limits: Limits
) -> Iterator[tuple[list[bytes], bool]]:
    """Split blocks at line feeds; a line has the flag of the block that it begins in.

    Raises:
        DataError: a line is too large.
    """
    begun: list[bytes] = []  # pieces of a line that has not ended yet
    size = 0
    begun_owned = True
    for block, owned in blocks:
        if not block:
            continue
        lines = block.split(b"\n")
        if not begun:
            begun_owned = owned
        begun.append(lines[0])
        size += len(lines[0])
        check_document(path, size, limits)
        if len(lines) == 1:
            continue
        yield [b"".join(begun)], begun_owned
        last = lines.pop()
        if len(lines) > 1:
            yield lines[1:], owned
        begun, size, begun_owned = [last] if last else [], len(last), owned
    if begun:
        yield [b"".join(begun)], begun_owned
