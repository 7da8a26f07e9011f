"""Folders of books in plain text, one book a file, as Project Gutenberg publishes them.

The header and the licence are cut away, hard-wrapped lines are joined into paragraphs, CRLF line
ends and byte order marks removed. A file that is not UTF-8 is read as Windows-1252, of which
Latin-1 text is a part: Gutenberg's older files are written so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.clean import clean_line
from data_prep.document import EMPTY, Document, Unit
from data_prep.sources.blocks import whole_blocks

_START = re.compile(r"^\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG[^\n]*\n", re.MULTILINE)
_OLD_START = re.compile(r"^\*END\*? ?THE SMALL PRINT![^\n]*\n", re.MULTILINE)
_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg)",
    re.MULTILINE | re.IGNORECASE,
)
_PRODUCED_BY = re.compile(r"^(?:E-text prepared by|Produced by|Transcribed (?:by|from))", re.I)
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_EMPHASIS = re.compile(r"(?<![\w_])_([^_\n]{1,200})_(?![\w_])")
_TERMINAL = re.compile(r"[.!?:;,”\"’')—-]\s*$")


def read_book(unit: Unit) -> Iterator[Document]:
    """Yield the one document of a book file."""
    data = b"".join(block for block, _ in whole_blocks(unit.path))
    text = book_text(decode(data))
    yield Document(text, "" if text else EMPTY, unit.path.name)


def decode(data: bytes) -> str:
    """Decode UTF-8 (with or without a byte order mark), else UTF-16 by its mark, else cp1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Five bytes are undefined in cp1252; Latin-1 maps them to controls, cleaned away later.
        return data.decode("cp1252", "replace").replace("\ufffd", " ")


def book_text(text: str) -> str:
    """Return the paragraphs of a book, one a line, without Gutenberg's frame."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = _START.search(text) or _OLD_START.search(text)
    if start is not None:
        text = text[start.end() :]
    end = _END.search(text)
    if end is not None:
        text = text[: end.start()]
    paragraphs = []
    for block in _BLANK_LINES.split(text):
        lines = [line.strip() for line in block.split("\n")]
        paragraph = clean_line(" ".join(line for line in lines if line))
        if "_" in paragraph:
            paragraph = _EMPHASIS.sub(r"\1", paragraph)
        if _is_prose(paragraph):
            paragraphs.append(paragraph)
    return "\n".join(paragraphs)


def _is_prose(paragraph: str) -> bool:
    """Tell paragraphs from chapter headings, tables of contents, rows of stars, credits."""
    if not paragraph or _PRODUCED_BY.match(paragraph):
        return False
    if "Project Gutenberg" in paragraph and len(paragraph) < 500:
        return False
    if not any(c.isalpha() for c in paragraph[:200]):
        return False
    if _TERMINAL.search(paragraph):
        return not (paragraph.isupper() and len(paragraph) < 60)
    # Headings are short and seldom end a sentence.
    return len(paragraph) >= 60 and not paragraph.isupper()
