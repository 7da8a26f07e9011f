"""``<nowiki>``: what it holds is text. Its marks are put out of the way and back at the end.

Each mark becomes a character of the last private plane, which no wiki has in its text, so that no
pass takes it for markup.
"""

from __future__ import annotations

import re

from data_prep.clean import unescape

_FIRST = 0x10FE00
_MARKS = "[]{}|'<>=*#:;_-!()/~&"
_HIDE = {ord(mark): _FIRST + ord(mark) for mark in _MARKS} | {ord("\n"): " "}
_SHOW: dict[int, str | None] = {_FIRST + ord(mark): mark for mark in _MARKS}
NOTHING = chr(_FIRST)
"""``<nowiki />``: shows nothing, and parts the marks on its sides."""
_SHOW[_FIRST] = None

_LONGEST_PARTED = 400
"""Characters between brackets that ``<nowiki/>`` takes apart."""
_PARTED = re.compile(rf"([\[{{]){NOTHING}(?=([\[{{]))")


def hidden(text: str) -> str:
    """Put the marks of a literal text out of the way."""
    return f"{NOTHING}{unescape(text).translate(_HIDE)}{NOTHING}"


def has_hidden(text: str) -> bool:
    """Tell whether a page holds literal text."""
    return NOTHING in text


def without_parted(text: str) -> str:
    """Hide the brackets of ``[<nowiki/>[0]]``: as they open nothing, nothing closes them."""
    pieces = []
    position = 0
    for match in _PARTED.finditer(text):
        start, mark = match.start(), match[2]
        if start < position:
            continue
        closing = "]]" if mark == "[" else "}}"
        line_end = text.find("\n", start, start + _LONGEST_PARTED)
        line_end = start + _LONGEST_PARTED if line_end < 0 else line_end
        close = text.find(closing, match.end(), line_end)
        pieces.append(text[position:start])
        pieces.append((match[1] + mark).translate(_HIDE))
        position = match.end() + 1
        if close >= 0 and text.find(mark * 2, position, close) < 0:
            pieces.append(text[position:close] + closing.translate(_HIDE))
            position = close + 2
    pieces.append(text[position:])
    return "".join(pieces)


def show(text: str) -> str:
    """Undo :func:`hidden`."""
    return text.translate(_SHOW)
