"""Small repairs that every source needs: control characters, spaces, byte order marks."""

from __future__ import annotations

import html
import re

# The tokenizer would delete these, and so glue the words on both sides together.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_HUGE_REFERENCE = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>")


def clean_line(line: str) -> str:
    """Return a paragraph with single spaces, without control characters and HTML escapes."""
    if "&" in line:
        line = unescape(line)
    if not line.isprintable():
        line = _CONTROLS.sub(" ", line)
    if "  " in line or "\t" in line or "\xa0" in line:
        line = " ".join(line.split())
    return line.strip()


def unescape(text: str) -> str:
    """Undo HTML escapes. References to characters that cannot exist vanish."""
    if "&#" in text:
        # html.unescape fails on numbers of thousands of digits.
        text = _HUGE_REFERENCE.sub("", text)
    return html.unescape(text)


def without_tags(line: str) -> str:
    """Return a line without HTML tags (``CUL-2<sup>LRR-1</sup>``), their content kept."""
    return _TAG.sub("", line) if "<" in line else line


def clean_paragraphs(text: str) -> str:
    """Return the non-empty lines of a text, each cleaned."""
    suspect = "&" in text or "  " in text or "\t" in text or "\xa0" in text
    if not suspect and text.replace("\n", " ").isprintable():
        # Most texts: nothing in them needs a repair.
        return "\n".join(filter(None, map(str.strip, text.split("\n"))))
    return "\n".join(filter(None, map(clean_line, text.split("\n"))))


def word_set(words: str) -> frozenset[str]:
    """Return the words of a text: a list that is read more easily than one with quotes."""
    return frozenset(words.split())
