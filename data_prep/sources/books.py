"""Reads folders of plain-text books, one book in a file, as Project Gutenberg publishes them.

The header and the licence are removed, hard-wrapped lines are joined into paragraphs, and CRLF line
ends and byte order marks are removed. A file that is neither UTF-8 nor UTF-16 is read in the
encoding that it names or that is detected; the manifest counts these. If the encoding is undecided,
the book is dropped as bad_utf8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from bertds.data.scripts import (
    ends_sentence,
    join_lines,
    may_join_without_space,
    word_count,
)
from data_prep.clean import clean_line, line_feeds
from data_prep.document import BAD_UTF8, EMPTY, Document, Unit
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.charsets import detect, switches_sets
from data_prep.sources.gutenberg import is_header_line, without_frame
from data_prep.sources.limits import joined

_PRODUCED_BY = re.compile(r"^(?:E-text prepared by|Produced by|Transcribed (?:by|from))", re.I)
# The ideographic space that indents the next paragraph is kept with that paragraph.
_BLANK_LINES = re.compile(r"\n[ \t\f\xa0]*\n[^\S\u3000]*")
# East Asian books indent their paragraphs, often without blank lines between them.
_INDENTED = re.compile(r"\n(?=[ \t]*\u3000)")
# "CHAPTER 1. Loomings.", which would be a sentence by its end.
_NUMBERED_HEADING = re.compile(
    r"(?i:chapter|chapitre|cap[ií]tulo|capitolo|capitol|kapit(?:el|tel)|hoofdstuk|rozdział|kapitola"
    r"|глава|розділ|bölüm|book|part|letter|act|scene|volume)\s+(?:[IVXLC]+|\d+)"
    r"(?=[.:,;–—-]|\s+[^\Wa-z]|$)"
)
_LONGEST_HEADING = 80
# A line of a table of contents, with or without the word.
_CONTENTS_LINE = re.compile(rf"(?:{_NUMBERED_HEADING.pattern})|[IVXLC]+\.\s")
_SOFT_HYPHEN_AT_END = re.compile("\xad[ \t]*\n[ \t]*(?=\\S)")
_EMPHASIS = re.compile(r"(?<![\w_])_([^_\n]{1,200})_(?![\w_])")
_TERMINAL = frozenset(".!?:;,”\"’')—-")


def read_book(unit: Unit) -> Iterator[Document]:
    """Yield the one document of a book file; it has the detected encoding, if not UTF-8."""
    name = unit.path.name
    text, encoding = decode(joined(unit.path, whole_blocks(unit.path, unit.limits), unit.limits))
    if not encoding:
        yield Document("", BAD_UTF8, name)
        return
    text = book_text(text)
    yield Document(text, "" if text else EMPTY, name, "" if encoding == "utf-8" else encoding)


def decode(data: bytes) -> tuple[str, str]:
    """Return a book's text and its encoding; both are empty if the encoding is undecided."""
    try:
        text = data.decode("utf-8-sig")
        if not switches_sets(data):
            return text, "utf-8"
    except UnicodeDecodeError:
        pass
    encoding = detect(data)
    if not encoding:
        return "", ""
    # Five bytes are undefined in cp1252. They become spaces.
    return data.decode(encoding, "replace").replace("\ufffd", " "), encoding


def book_text(text: str) -> str:
    """Return the paragraphs of a book, one in a line, without Gutenberg's frame."""
    text = without_frame(line_feeds(text))
    if "\xad" in text:
        text = _SOFT_HYPHEN_AT_END.sub("", text)
    # Chinese and Japanese lines are joined without a space.
    join: Callable[[list[str]], str] = join_lines if may_join_without_space(text) else " ".join
    paragraphs = []
    for block in _blocks(text):
        lines = list(filter(None, map(str.strip, block.split("\n"))))
        if _is_contents(lines):
            continue
        paragraph = clean_line(join(lines))
        if "_" in paragraph:
            paragraph = _EMPHASIS.sub(r"\1", paragraph)
        if _is_prose(paragraph):
            paragraphs.append(paragraph)
    return "\n".join(paragraphs)


def _blocks(text: str) -> list[str]:
    """Split a text at the beginnings of its paragraphs."""
    blocks = _BLANK_LINES.split(text)
    if "\u3000" not in text:
        return blocks
    return [paragraph for block in blocks for paragraph in _INDENTED.split(block)]


def _is_contents(lines: list[str]) -> bool:
    """Return whether nearly all lines of a paragraph are those of a table of contents."""
    if len(lines) < 3 or _CONTENTS_LINE.match(lines[0]) is None:
        return False
    entries = sum(_CONTENTS_LINE.match(line) is not None for line in lines)
    return entries >= 0.8 * len(lines)


def _is_prose(paragraph: str) -> bool:
    """Distinguish paragraphs from headings, tables of contents, rows of asterisks and credits."""
    if not paragraph or _PRODUCED_BY.match(paragraph) or is_header_line(paragraph):
        return False
    if len(paragraph) < 500 and "Project Gutenberg" in paragraph:
        return False
    if len(paragraph) < _LONGEST_HEADING and _NUMBERED_HEADING.match(paragraph):
        return False
    # Nearly all paragraphs begin with a letter, or with a quotation mark and a letter.
    if not (paragraph[0].isalpha() or any(c.isalpha() for c in paragraph[1:200])):
        return False
    if paragraph.rstrip()[-1:] in _TERMINAL:
        return not (len(paragraph) < 60 and _is_capitals(paragraph))
    if not paragraph.isascii() and ends_sentence(paragraph):
        return True
    # Headings are short and seldom end a sentence.
    return (len(paragraph) >= 60 and not _is_capitals(paragraph)) or _has_many_words(paragraph)


def _is_capitals(paragraph: str) -> bool:
    """Distinguish a heading in capitals from Arabic or Chinese with one Latin acronym in it."""
    if not paragraph.isupper():
        return False
    letters = sum(map(str.isalpha, paragraph))
    return 2 * sum(map(str.isupper, paragraph)) >= letters


def _has_many_words(paragraph: str) -> bool:
    """Recognise a paragraph in a script without spaces, where few characters are many words."""
    return not paragraph.isascii() and word_count(paragraph) >= 12 > paragraph.count(" ")
