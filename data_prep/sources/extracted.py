"""Already extracted articles: ``<doc id= url= title=> ... </doc>``, plain or compressed.

This is WikiExtractor's output, or with ``--json`` one object per line. The first line of a body is
the title. The title and the section titles (short lines that end in a full stop, ``Career.``) are
not prose and are left out. Remaining tags and entities are removed or decoded. Where the extractor
left templates, links or bold text, the text is cleaned like that of a dump. A document that is only
a title (which is how a redirect looks in this format) counts as empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bertds.data.scripts import gap
from bertds.errors import DataError
from bertds.system.json_fields import parse_text_json
from bertds.system.stored_path import FilePath
from data_prep.clean import clean_line, line_feeds, unescape, without_tags
from data_prep.document import BAD_UTF8, EMPTY, MALFORMED, Document, Unit
from data_prep.sources.blocks import compression, plain_blocks, records, whole_blocks
from data_prep.sources.text import unit_lines
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.names import Site, site

OPENING, CLOSING = b"<doc id=", b"</doc>"

# The value may contain quotation marks: it ends before another attribute, or before the tag's end.
_AFTER_TITLE = r'\s+[a-z_]+="|\s*/?>\s*$'
_TITLE = re.compile(rf'\btitle="([^"\n]*(?:"(?!{_AFTER_TITLE})[^"\n]*)*)"(?={_AFTER_TITLE})')
_NOT_PROSE = re.compile(
    r"<(ref|references|gallery|timeline|style|script|math)(?:\s[^<>]*)?(?<!/)>.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINE_BREAK = re.compile(r"[^\S\n]*<br\s*/?>[^\S\n]*", re.IGNORECASE)  # a line is a paragraph
# A section title has no references and no line break: "She was born in 1958.<ref>...</ref>".
_MARKED_SENTENCE = re.compile(r"\.(?=[ \t]*<(?:ref|br)\b)", re.IGNORECASE)
_NO_TITLE = "\0"
"""Marks a line that ``is_section_title`` must not take for one; ``clean_line`` removes it."""
_SECTION_TITLE_WORDS = 8
_WIKITEXT = re.compile(r"\{[{|]|\[\[|'''")
_LANGUAGE = re.compile(r"https?://([a-z][a-z-]+)\.(?:m\.)?wik")


def read_extracted(unit: Unit) -> Iterator[Document]:
    """Yield a document for every ``<doc>`` that begins in the unit."""
    if compression(unit.path) == "":
        blocks = plain_blocks(unit.path, unit.start, unit.end)
    else:
        blocks = whole_blocks(unit.path, unit.limits)
    count = 0
    for record in records(blocks, OPENING, CLOSING, unit.path, unit.limits):
        count += 1
        yield doc_document(record, unit.options)
    if count == 0 and (unit.start, unit.end) == (0, unit.path.stat().st_size):
        raise DataError(f"{unit.path}: contains no <doc id=...>, unlike other files of its folder")


def doc_document(record: bytes, options: tuple[str, ...] = ()) -> Document:
    """Turn one ``<doc ...>...</doc>`` into a document.

    Args:
        record: the element's bytes.
        options: the options of :func:`data_prep.wiki.names.site`, which include the user's
            templates.
    """
    try:
        text = line_feeds(record.decode("utf-8"))
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    head, _, body = text.partition("\n")
    return body_document(_title(head), body[: body.rfind("</doc>")], head, options)


def _title(head: str) -> str:
    # Most heads end with a plain title, and the pattern takes ten times as long as a search.
    value = head[head.find(' title="') + 8 : -2]
    if head.endswith('">') and ' title="' in head and '"' not in value:
        return value
    found = _TITLE.search(head)
    return found[1] if found is not None else ""


def body_document(title: str, body: str, address: str, options: tuple[str, ...] = ()) -> Document:
    """Turn the title and the body of an article into a document.

    Args:
        title: title of the article, with HTML escapes.
        body: its text, with HTML escapes.
        address: text that contains the page's address, which shows its language.
        options: as for :func:`doc_document`.
    """
    title = unescape(title)
    if "&" in body:
        body = unescape(body)
    if "<" in body:
        body = _MARKED_SENTENCE.sub(f".{_NO_TITLE}", body)
    # Single letters are found much faster than pairs, and most articles contain neither.
    if ("{" in body or "[" in body or "'''" in body) and _WIKITEXT.search(body):
        body = clean_wikitext(body, _site_of(address, options), title, extracted=True)
    elif "<" in body:
        body = without_markup(body)
    lines = [line for line in map(str.strip, body.split("\n")) if line]
    # The first line of a body repeats the title.
    if lines and (lines[0] == title or lines[0].split() == without_markup(title).split()):
        del lines[0]
    paragraphs = [clean_line(line) for line in lines if not is_section_title(line)]
    text = "\n".join(p for p in paragraphs if p)
    return Document(text, "" if text else EMPTY, title)


def _site_of(address: str, options: tuple[str, ...]) -> Site:
    found = _LANGUAGE.search(address)
    return site((*options, f"language={found[1] if found is not None else 'en'}"))


def _gap(line_break: re.Match[str]) -> str:
    text, start, end = line_break.string, line_break.start(), line_break.end()
    return gap(text[max(0, start - 1) : start], text[end : end + 1])


def without_markup(text: str) -> str:
    """Remove the markup that an extractor left: comments, elements without prose, tags."""
    if "<" not in text:
        return text
    text = _COMMENT.sub("", text)
    text = _NOT_PROSE.sub("", text)
    return without_tags(_LINE_BREAK.sub(_gap, text))


def read_extracted_json(unit: Unit) -> Iterator[Document]:
    """Yield a document for every line that begins in the unit (WikiExtractor's ``--json``)."""
    for line, owned in unit_lines(unit):
        if not owned:
            return
        if line.strip():
            yield _json_document(line, unit.options)


def _json_document(line: bytes, options: tuple[str, ...]) -> Document:
    try:
        record = parse_text_json(line)
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    except ValueError:
        return Document("", MALFORMED)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return Document("", MALFORMED)
    title = record.get("title")
    title = title if isinstance(title, str) else ""
    return body_document(title, line_feeds(record["text"]), str(record.get("url", "")), options)


def is_extracted_json(path: FilePath) -> bool:
    """Return whether JSON lines are WikiExtractor's ``--json`` output, by their first record."""
    block = next(whole_blocks(path), (b"", True))[0]
    try:
        record = parse_text_json(block.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(record, dict) and record.keys() >= {"id", "url", "title", "text"}


def is_section_title(line: str) -> bool:
    """Distinguish ``Career.`` from a sentence: one capitalized phrase, few words, no commas.

    A true sentence of this length is lost too. That is rare: it would be a paragraph of its own.
    """
    return (
        len(line) < 60
        and line.endswith(".")
        and line.count(" ") < _SECTION_TITLE_WORDS
        and line.find(". ") < 0
        and _NO_TITLE not in line
    )
