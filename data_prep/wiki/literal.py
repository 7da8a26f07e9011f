"""``<nowiki>``: its content is text. Its marks are replaced at the beginning, and restored last.

Each mark becomes a character of the last private-use plane, which no wiki uses in its text, so that
no pass takes it for markup.
"""

from __future__ import annotations

import re

from data_prep.clean import unescape

_FIRST = 0x10FE00
_MARKS = "[]{}|'<>=*#:;_-!()/~&"
_HIDE = {ord(mark): _FIRST + ord(mark) for mark in _MARKS} | {ord("\n"): " "}
_SHOW: dict[int, str | None] = {_FIRST + ord(mark): mark for mark in _MARKS}
NOTHING = chr(_FIRST)
"""``<nowiki />``: shows nothing, and separates the marks on both sides."""
_SHOW[_FIRST] = None
_HIDDEN = re.compile(f"[{NOTHING}-{chr(_FIRST + 0x7F)}]")

_LONGEST_PARTED = 400
"""Maximum number of characters between brackets that ``<nowiki/>`` separates."""
_PARTED = re.compile(rf"([\[{{]){NOTHING}(?=([\[{{]))")


# A line that begins with formatting, a link or an entity, and then shows a character that would be
# markup at the beginning of a line: "'''!!!''' is a band", "[[#9 Dream]] is a song", "&#33;Kung".
# The marks of a list come before it.
_SHOWS_MARK = re.compile(
    r"\n[*#:; \t]*+(?=(?:''+|\[\[(?:[^\[\]|:\n]*+\|)?+)++([*#:;=!|{}]|&#?\w+;)|(&#?\w+;))"
)
_LINE_MARKS = frozenset("*#:;=!|{}")


def shown_marks_apart(text: str) -> str:
    """Put NOTHING before a character that is shown where it would otherwise be markup."""
    return _SHOWS_MARK.sub(_mark_apart, f"\n{text}")[1:]


def _mark_apart(match: re.Match[str]) -> str:
    shown = unescape(match[1] or match[2])
    return match[0] + NOTHING if shown in _LINE_MARKS else match[0]


def hidden(text: str) -> str:
    """Replace the marks of a literal text by private-use characters."""
    return f"{NOTHING}{unescape(text).translate(_HIDE)}{NOTHING}"


# "&#91;&#91;x]]" shows brackets, and "&#124;" a bar: no later pass may take them for markup.
_ESCAPED_MARK = re.compile(
    "&(?:#0*(?:91|93|12[345])|#[xX]0*(?:5[bBdD]|7[bBcCdD])|[lr](?:brack|brace|sqb|cub)|vert|verbar);"
)


def unescaped(text: str) -> str:
    """Decode HTML's escapes; brackets, braces and bars become private-use characters."""
    return unescape(_ESCAPED_MARK.sub(lambda match: hidden(match[0]), text))


def has_hidden(text: str) -> bool:
    """Return whether a page contains literal text."""
    return NOTHING in text


def without_parted(text: str) -> str:
    """Hide the brackets of ``[<nowiki/>[0]]``: they open nothing, so nothing closes them."""
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
        # The closing brackets are text too, unless a real link begins before them.
        if close >= 0 and text.find(mark * 2, position, close) < 0:
            pieces.append(text[position:close] + closing.translate(_HIDE))
            position = close + 2
    pieces.append(text[position:])
    return "".join(pieces)


def show(paragraphs: list[str]) -> list[str]:
    """Undo :func:`hidden`; leave out paragraphs that show nothing."""
    return list(filter(None, map(_shown, paragraphs)))


def _shown(paragraph: str) -> str:
    if paragraph.isascii() or _HIDDEN.search(paragraph) is None:
        return paragraph
    # NOTHING between two spaces has kept them apart.
    return " ".join(paragraph.translate(_SHOW).split())
