"""MediaWiki XML dumps: export versions 0.3 to 0.11, plain, bzip2 (also multistream) or gzip."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

from bertds.errors import DataError
from bertds.system.stored_path import FilePath
from data_prep.clean import line_feeds
from data_prep.document import (
    BAD_UTF8,
    EMPTY,
    MALFORMED,
    NAMESPACE,
    NOT_TEXT,
    REDIRECT,
    Document,
    Limits,
    Unit,
)
from data_prep.sources.blocks import (
    DEFAULT_LIMITS,
    Block,
    bz2_blocks,
    compression,
    plain_blocks,
    records,
    whole_blocks,
)
from data_prep.sources.reading import open_binary
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.names import Site, foreign_redirects, site, site_options

_OPENING, _CLOSING = b"<page>", b"</page>"
_END = b"</mediawiki>"
_HEAD_BYTES = 64 << 10

_TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
_NAMESPACE = re.compile(rb"<ns>\s*(-?\d+)\s*</ns>")
_MODEL = re.compile(rb"<model>\s*([^<]*?)\s*</model>")
# XML's own escapes, undone in one pass: five calls of replace() take four times as long.
_ESCAPE = re.compile("&(lt|gt|quot|apos|#10|amp);")
_ESCAPED = {"lt": "<", "gt": ">", "quot": '"', "apos": "'", "#10": "\n", "amp": "&"}
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
# "#REDIRECT [[Target]]", also in the wiki's own language, for dumps older than <redirect />.
_REDIRECT_TEXT = re.compile(r"\s*[#＃]\s*([^\s#:：\[\]][^\n#:：\[\]]{0,40}?)\s*[:：]?\s*\[\[")
_ONE_LINK = re.compile(r"\[\[[^\[\]\n]*\]\]|\{\{[^{}\n]*\}\}|<!--.*?-->")
_ONE_LINE = re.compile(r"[^\n]*\]\]\s*")


def sniff_dump(path: FilePath) -> tuple[str, ...]:
    """Check that a file is a dump, and return the options that its header gives for its wiki.

    See :func:`data_prep.wiki.names.site_options`.

    Raises:
        DataError: the file is not a MediaWiki export, or a plain file that is truncated.
    """
    head = b""
    for block, _ in whole_blocks(path):
        head += block
        if len(head) >= _HEAD_BYTES:
            break
    if b"<mediawiki" not in head[:_HEAD_BYTES]:
        found = head[:40].decode("utf-8", "replace").split("\n")[0].strip()
        raise DataError(
            f"{path}: not a MediaWiki dump: it begins with {found!r}, expected <mediawiki ...>"
        )
    # The end of a plain file is cheap to check now; compressed files are checked while reading.
    if compression(path) == "":
        with open_binary(path) as file:
            file.seek(max(0, path.stat().st_size - 4096))
            if _END not in file.read():
                raise truncated(path)
    return site_options(head.decode("utf-8", "replace"))


def truncated(path: FilePath) -> DataError:
    """Return the error for a dump that ends too early."""
    return DataError(f"{path}: truncated: </mediawiki> is missing at the end; download it again")


def _ends_dump(tail: bytes) -> bool:
    """Return whether the last bytes that a reader saw can be the end of a dump."""
    tail = tail.rstrip()
    # A unit may begin inside "</mediawiki>" and see only its last letters.
    return _END in tail or (0 < len(tail) < len(_END) and _END.endswith(tail))


def _pages(blocks: Iterator[Block], path: FilePath, limits: Limits) -> Iterator[bytes]:
    tail = yield from records(blocks, _OPENING, _CLOSING, path, limits)
    # A file that ends between two pages looks complete to the record reader. Without a tail it did
    # not come to the end of the file.
    if tail and not _ends_dump(tail):
        raise truncated(path)


def page_batches(
    path: FilePath, batch_bytes: int, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[bytes, ...]]:
    """Yield the pages of a dump that only one process can read (a single stream), in batches.

    Raises:
        DataError: the dump is truncated or damaged.
    """
    batch: list[bytes] = []
    size = 0
    for page in _pages(whole_blocks(path, limits), path, limits):
        batch.append(page)
        size += len(page)
        if size >= batch_bytes:
            yield tuple(batch)
            batch, size = [], 0
    if batch:
        yield tuple(batch)


def read_dump(unit: Unit) -> Iterator[Document]:
    """Yield a document for every page that begins in the unit.

    Raises:
        DataError: the dump is truncated or damaged.
    """
    wiki = site(unit.options)
    pages: Iterable[bytes]
    if unit.records is not None:
        pages = unit.records
    else:
        blocks: Iterator[Block] = (
            bz2_blocks(unit.path, unit.start, unit.end, unit.limits)
            if compression(unit.path) == "bz2"
            else plain_blocks(unit.path, unit.start, unit.end)
        )
        pages = _pages(blocks, unit.path, unit.limits)
    for page in pages:
        yield page_document(page, wiki)._replace(title=page_title(page))


def page_title(page: bytes) -> str:
    """Return a page's title, or ""."""
    title = _TITLE.search(page)
    return html.unescape(title[1].decode("utf-8", "replace")) if title is not None else ""


def page_document(page: bytes, wiki: Site) -> Document:
    """Turn one ``<page>...</page>`` into a document.

    Args:
        page: the element's bytes.
        wiki: the names of the page's wiki.
    """
    # A second <page> inside means that the end of the first one was lost.
    if page.find(_OPENING, 6) >= 0:
        return Document("", MALFORMED)
    # The newest revision is last.
    text_at = page.rfind(b"<text")
    header = page[: text_at if text_at >= 0 else len(page)]
    namespace = _NAMESPACE.search(header)
    if namespace is not None:
        if namespace[1] != b"0":
            return Document("", NAMESPACE)
    else:
        # Old dumps have no <ns>: the prefix of the title shows the namespace.
        title = _TITLE.search(header)
        if title is not None and b":" in title[1]:
            prefix = title[1].decode("utf-8", "replace").partition(":")[0]
            if prefix.replace("_", " ").strip().lower() in wiki.namespaces:
                return Document("", NAMESPACE)
    if b"<redirect" in header:
        return Document("", REDIRECT)
    # The model is missing in old dumps, whose pages are all wikitext.
    model = _MODEL.search(header)
    if model is not None and model[1] != b"wikitext":
        return Document("", NOT_TEXT)
    if text_at < 0:
        return Document("", EMPTY)
    start = page.find(b">", text_at)
    # Inside CDATA, "</text>" would be text.
    begin = page.find(b"]]>", start) if page.startswith(b"<![CDATA[", start + 1) else start
    end = page.find(b"</text>", max(begin, start))
    if start < 0 or page[start - 1 : start] == b"/" or end < 0:
        return Document("", EMPTY)
    try:
        text = line_feeds(page[start + 1 : end].decode("utf-8"))
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    text = _unescaped(text)
    if ("#" in text[:40] or "＃" in text[:40]) and _is_redirect(text, wiki):
        return Document("", REDIRECT)
    text = clean_wikitext(text, wiki, page_title(page) if "{{" in text else "")
    return Document(text) if text else Document("", EMPTY)


def _unescaped(text: str) -> str:
    """Undo XML's escapes; the content of ``<![CDATA[...]]>`` has none."""
    if "<" in text:  # a CDATA section, since other "<" are escaped (or the dump is damaged)
        pieces = _CDATA.split(text)
        pieces[::2] = map(_unescaped_outside, pieces[::2])
        return "".join(pieces)
    return _unescaped_outside(text)


def _unescaped_outside(text: str) -> str:
    if "&" in text:
        pieces = _ESCAPE.split(text)
        pieces[1::2] = map(_ESCAPED.__getitem__, pieces[1::2])
        text = "".join(pieces)
    return text


def _is_redirect(text: str, wiki: Site) -> bool:
    """Distinguish ``#REDIRECT [[Target]]``, in any language, from a list that looks like it."""
    match = _REDIRECT_TEXT.match(text)
    if match is None:
        return False
    written = match[1].replace("_", " ")
    if written.lower() in wiki.redirects:
        return True
    # Not a redirect word of this wiki: it is a redirect only if the page holds nothing else.
    line, _, others = text[match.end() - 2 :].lstrip().partition("\n")
    if written.lower() in foreign_redirects():
        # "#Ohjaus [[X]] is ..." is a sentence, although "#OHJAUS [[X]]" is a redirect in Finnish.
        return not _has_letters(others) and (written.isupper() or not _has_letters(line))
    return not others.strip() and _ONE_LINE.fullmatch(text, match.end()) is not None


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, _ONE_LINK.sub("", text)))
