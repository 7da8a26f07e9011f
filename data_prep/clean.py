"""Small repairs that every source needs: control characters, spaces, escapes, tags."""

from __future__ import annotations

import html
import html.entities
import re


def word_set(words: str) -> frozenset[str]:
    """Return the set of the words in a text, which is easier to read than a list with quotes."""
    return frozenset(words.split())


# The tokenizer would delete these and thereby join the words on both sides.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_OTHER_ENDS = re.compile("\r+\n|\r")
# An entity ends with its semicolon: "?a=1&copy=2" is an address, not a copyright sign.
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]{1,31});")
_LONGEST_REFERENCE = 10
# Names that are certainly markup: HTML, MediaWiki's additions, and those of abstracts (JATS). Text
# such as "CD4<CD8 but CD8>CD4" or MEDLINE's "<or=" is not a tag.
TAG_NAMES = word_set(
    """
    a abbr acronym address article aside b bdi bdo big blockquote body br caption center cite code
    col colgroup data dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 h4
    h5 h6 head header hr html i img ins kbd li link main mark menu meta nav ol p picture pre q rb rp
    rt rtc ruby s samp section small source span strike strong style sub summary sup svg table
    tbody td tfoot th thead time title tr tt u ul var wbr

    nowiki ref references gallery poem math chem ce score hiero timeline onlyinclude includeonly
    noinclude templatestyles section syntaxhighlight indicator mapframe maplink imagemap graph
    inputbox categorytree langconvert templatedata translate languages tvar phonos charinsert

    italic bold underline sc monospace xref ext-link uri named-content styled-content inline-formula
    disp-formula tex-math list list-item sec label abstracttext
    """
)
# With or without attributes. "x <b and c> d" is a comparison, not a tag.
_ATTRIBUTE = r"\s++[\w:.-]++(?:\s*+=\s*+(?:\"[^\"<>\n]*+\"|'[^'<>\n]*+'|[^\s\"'=<>`]++))"
_TAG = re.compile(rf"</?([a-zA-Z][a-zA-Z0-9-]*+)(?:{_ATTRIBUTE})*+\s*+/?>")


def line_feeds(text: str) -> str:
    """Return a text with LF in place of CR LF (Windows) and CR (old Macs).

    CR CR LF is one line end: it comes from writing CR LF to a file that converts LF to CR LF.
    """
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    return _OTHER_ENDS.sub("\n", text) if "\r" in text else text


def clean_line(line: str) -> str:
    """Return a paragraph with single spaces and without control characters."""
    if not line.isprintable():
        line = _CONTROLS.sub(" ", line)
    if "  " in line or "\t" in line or "\xa0" in line:
        line = " ".join(line.split())
    return line.strip()


def unescape(text: str) -> str:
    """Undo HTML escapes that end in a semicolon, for sources that are written in markup.

    References to characters that cannot exist are removed.
    """
    return _ENTITY.sub(_entity, text) if "&" in text and ";" in text else text


def _entity(match: re.Match[str]) -> str:
    written = match[0]
    if written[1] == "#" and len(written) > _LONGEST_REFERENCE:
        # html.unescape fails on numbers of thousands of digits; leading zeros are allowed.
        digits = written[2:-1].lstrip("xX0") or "0"
        if len(digits) > 7:
            return ""
        written = f"&#{'x' if written[2] in 'xX' else ''}{digits};"
    return html.unescape(written) if written in _NAMED or written[1] == "#" else match[0]


_NAMED = frozenset(f"&{name}" for name in html.entities.html5 if name.endswith(";"))


def without_tags(line: str) -> str:
    """Return a line without HTML tags (``CUL-2<sup>LRR-1</sup>``); their content is kept.

    Anything else in angle brackets stays: comparisons, ``<or=``, addresses.
    """
    if "<" not in line:
        return line
    return _TAG.sub(lambda m: "" if m[1].lower() in TAG_NAMES else m[0], line)


def clean_paragraphs(text: str) -> str:
    """Return the non-empty lines of a text, each cleaned."""
    text = line_feeds(text)
    suspect = "  " in text or "\t" in text or "\xa0" in text
    if not suspect and text.replace("\n", " ").isprintable():
        # Most texts need no repair.
        return "\n".join(filter(None, map(str.strip, text.split("\n"))))
    return "\n".join(filter(None, map(clean_line, text.split("\n"))))
