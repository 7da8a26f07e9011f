"""Removes elements and comments: ``<ref>``, ``<table>``, ``<br>``, ``<!-- -->`` and the like."""

from __future__ import annotations

import re

from bertds.data.scripts import gap
from data_prep.clean import TAG_NAMES, word_set
from data_prep.wiki import literal
from data_prep.wiki.formulas import LONGEST, formula_text

# Elements whose content is not prose. Names in lower case.
_DROPPED = word_set(
    """
    ref references math chem ce gallery timeline syntaxhighlight source score hiero imagemap
    graph mapframe maplink templatedata categorytree inputbox includeonly indicator table
    style script pre
    """
)
# Formatting: if a line begins with one of these, a mark after it begins neither list nor table.
_INLINE = word_set("b i u s em strong small big span font code tt kbd samp var cite dfn q sub sup")
_LINE_MARKS = frozenset("*#:;=!|{}")
_BEFORE_TEXT = frozenset(["", *"\n*#:; '"])
_FORMULAS = frozenset(["math", "chem", "ce"])
# Elements that end a paragraph.
_BLOCKS = word_set("p div blockquote poem center li ul ol dl dd dt hr tr td th caption")
_TAGS = TAG_NAMES | _DROPPED | _BLOCKS
_MARKUP = re.compile(r"<(?:!(?:--|\[CDATA\[)|(/?)([a-zA-Z][a-zA-Z0-9]*)(?=[\s/>]))")
_CDATA = "<![CDATA["
_END_OF_NOWIKI = re.compile(r"</nowiki\s*>", re.IGNORECASE)
_END_OF_COMMENT = re.compile(r"-->[ \t]*")
_LINE_BREAK = re.compile(r"\s*<br\b", re.IGNORECASE)
_HEADINGS = {f"h{level}": "=" * level for level in range(1, 7)}
_LONGEST_HEADING = 300
_LONGEST_NESTED_REFERENCE = 4000
"""In characters; a longer reference was never closed."""


def without_elements(text: str) -> str:
    """Remove comments, tags, and elements without prose."""
    pieces = []
    position = 0
    unclosed: set[str] = set()
    match = _MARKUP.search(text)
    while match is not None:
        start = match.start()
        name = (match[2] or "").lower()
        if name and name not in _TAGS:
            # Not a tag: "CD4<CD8 but CD8>CD4" is text, as in MediaWiki.
            match = _MARKUP.search(text, match.end())
            continue
        if not name:
            end, replacement = _comment(text, start, unclosed)
        else:
            close = text.find(">", match.end(), match.end() + 2000)
            if close < 0:
                # "<ref" without ">": an unfinished tag costs only the rest of its line.
                close = text.find("\n", match.end())
                close = len(text) if close < 0 else close
                end, replacement = close, ""
            else:
                end = close + 1
                replacement = ""
                # A dropped element goes with its content; `<ref .../>` and a lone closing tag have
                # none.
                if name in _DROPPED:
                    if not match[1] and text[close - 1] != "/":
                        inside = end
                        end = _element_end(text, name, match[2], end, unclosed)
                        if name in _FORMULAS:
                            replacement = formula_text(_content(text, inside, end))
                elif name in _BLOCKS:
                    replacement = "\n\n"
                elif name in _HEADINGS:
                    end, replacement = _heading(text, name, end)
                elif name == "br":
                    replacement = _line_break(text, start, end)
                elif name == "nowiki":
                    end, replacement = _literal(text, start, end, unclosed)
                elif (
                    text[end : end + 1] in _LINE_MARKS
                    and name in _INLINE
                    and text[start - 1 : start] in _BEFORE_TEXT
                ):
                    replacement = literal.NOTHING
        # Keep the text before the tag, and continue after what it removes.
        pieces.append(text[position:start])
        if replacement:
            pieces.append(replacement)
        position = end
        match = _MARKUP.search(text, position)
    pieces.append(text[position:])
    return "".join(pieces)


def _comment(text: str, start: int, unclosed: set[str]) -> tuple[int, str]:
    """Return the end of what begins with ``<!``, and what it shows: nothing, or CDATA's text."""
    if text[start + 2] == "-":
        return _comment_end(text, start), ""
    end = -1 if _CDATA in unclosed else text.find("]]>", start)
    if end < 0:
        unclosed.add(_CDATA)
        return start + len(_CDATA), ""
    return end + 3, literal.hidden(text[start + len(_CDATA) : end])


def _comment_end(text: str, start: int) -> int:
    """Return the end of ``<!-- -->``, or of several on one line.

    As in MediaWiki, a line of nothing else disappears: it is not a blank line, which would end the
    paragraph.
    """
    end = after = start
    while text.startswith("<!--", after):
        close = _END_OF_COMMENT.search(text, after + 4)
        if close is None:
            return len(text)
        end, after = close.start() + 3, close.end()
    # The line is searched only once per line, so that many comments take linear time.
    if text[after : after + 1] != "\n" or text[text.rfind("\n", 0, start) + 1 : start].strip():
        return end
    return after + 1


def _literal(text: str, start: int, end: int, unclosed: set[str]) -> tuple[int, str]:
    """Return the end of what begins with a ``nowiki`` tag, and the text that it shows."""
    if text[start + 1] == "/":  # never opened
        return end, ""
    if text[end - 2] == "/":
        return end, literal.NOTHING
    close = None if "nowiki" in unclosed else _END_OF_NOWIKI.search(text, end)
    if close is None:
        unclosed.add("nowiki")
        return end, ""
    return close.end(), literal.hidden(text[end : close.start()])


def _line_break(text: str, start: int, end: int) -> str:
    """Return the replacement of a ``<br>``: one is inside a sentence, two end a paragraph."""
    if _LINE_BREAK.match(text, end):
        return "\n\n"
    return gap(text[max(0, start - 1) : start], text[end : end + 1])


def _heading(text: str, name: str, start: int) -> tuple[int, str]:
    """Return the end of ``<h2>Title</h2>``, and the title as a heading in wikitext."""
    limit = start + _LONGEST_HEADING
    close = max(text.find(f"</{name}", start, limit), text.find(f"</{name.upper()}", start, limit))
    if close < 0:
        return start, "\n\n"
    end = text.find(">", close) + 1 or len(text)
    title = " ".join(without_elements(text[start:close]).split())
    return end, f"\n\n{_HEADINGS[name]}{title}{_HEADINGS[name]}\n\n" if title else "\n\n"


def _content(text: str, start: int, end: int) -> str:
    """Return the text between ``start`` and the closing tag that ends at ``end``, if short."""
    close = text.rfind("</", start, end) if end - start < 2 * LONGEST else -1
    return text[start:close] if close >= 0 else ""


def _element_end(text: str, name: str, written: str, start: int, unclosed: set[str]) -> int:
    """Return the end of ``</name>``, or the end of the line if it is never closed.

    ``unclosed`` remembers names without a closing tag, so that many of them do not each search to
    the end of the page. "name " (with a space) means that nested elements of the name are not
    balanced.
    """
    if name not in unclosed:
        for spelling in dict.fromkeys((written, name, name.upper(), name.capitalize())):
            close = text.find(f"</{spelling}", start)
            if close >= 0:
                # Most contain no element at all, and one letter is found faster than a name.
                if text.find("<", start, close) >= 0 <= text.find(f"<{spelling}", start, close):
                    close = _outer_close(text, name, start, close, unclosed)
                close = text.find(">", close)
                return len(text) if close < 0 else close + 1
        unclosed.add(name)
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


def _outer_close(text: str, name: str, start: int, first: int, unclosed: set[str]) -> int:
    """Return the start of the tag that closes an element which contains others of its name.

    If they are not balanced, it is the first closing tag: an opening one was never closed, and
    continuing to a later end would remove prose.
    """
    if f"{name} " in unclosed:
        return first
    is_reference = name == "ref"
    limit = start + _LONGEST_NESTED_REFERENCE if is_reference else len(text)
    depth = 1
    tags = re.compile(rf"<(/?){name}(?=[\s/>])[^<>]*>", re.IGNORECASE)
    for tag in tags.finditer(text, start, limit):
        if tag[1]:
            depth -= 1
            if depth == 0:
                end = tag.start()
                # A reference does not span paragraphs: such a match is a later reference's end.
                if is_reference and text.find("\n\n", start, end) >= 0:
                    break
                return end
        elif tag[0][-2] != "/":
            depth += 1
    unclosed.add(f"{name} ")
    return first
