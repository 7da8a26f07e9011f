"""Already extracted articles: ``<doc id= url= title=> ... </doc>``, plain, .bz2 or .gz.

That is WikiExtractor's output. The first line of a body is the title; it and the short lines that
end in a full stop (section titles, ``Career.``) are not prose and are left out. A document that is
only a title (a redirect, in that format) counts as empty.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from bertds.errors import DataError
from data_prep.clean import clean_line
from data_prep.document import BAD_UTF8, EMPTY, Document, Unit
from data_prep.sources.blocks import compression, plain_blocks, records, whole_blocks

OPENING, CLOSING = b"<doc id=", b"</doc>"

_TITLE = re.compile(r'title="([^"]*)"')
_SECTION_TITLE_WORDS = 8


def read_extracted(unit: Unit) -> Iterator[Document]:
    """Yield a document for every ``<doc>`` that begins in the unit."""
    if compression(unit.path) == "":
        blocks = plain_blocks(unit.path, unit.start, unit.end)
    else:
        blocks = whole_blocks(unit.path)
    count = 0
    for record in records(blocks, OPENING, CLOSING, unit.path):
        count += 1
        yield doc_document(record)
    if count == 0 and (unit.start, unit.end) == (0, unit.path.stat().st_size):
        raise DataError(f"{unit.path}: no <doc id=...> in it; other files of its folder have some")


def doc_document(record: bytes) -> Document:
    """Turn one ``<doc ...>...</doc>`` into a document."""
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    head, _, body = text.partition("\n")
    body = body[: body.rfind("</doc>")]
    lines = [line for line in map(str.strip, body.split("\n")) if line]
    found = _TITLE.search(head)
    title = html.unescape(found[1]) if found is not None else ""
    if lines and lines[0] == title:
        del lines[0]
    paragraphs = [clean_line(line) for line in lines if not is_section_title(line)]
    text = "\n".join(p for p in paragraphs if p)
    return Document(text, "" if text else EMPTY, title)


def is_section_title(line: str) -> bool:
    """Tell ``Career.`` from a sentence: one capitalised phrase, a full stop, few words, no commas.

    A true sentence so short is lost too (seldom: it would be a paragraph of its own).
    """
    return (
        len(line) < 60
        and line.endswith(".")
        and line.count(" ") < _SECTION_TITLE_WORDS
        and line.find(". ") < 0
    )
