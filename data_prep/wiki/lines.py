"""The last pass from wikitext to prose: joins lines into paragraphs and closes gaps in them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from bertds.data.scripts import (
    ends_sentence,
    join_lines,
    without_marked_ends,
    word_count,
)
from bertds.system.yaml_text import FastLoader, load_yaml
from data_prep.wiki.names import codes_with_fallbacks, switches

_SECTIONS_FILE = Path(__file__).with_name("sections.yaml")
# "__TOC__", "__БЕЗ_ОГЛАВЛЕНИЯ__", full-width in Japanese. Only names that MediaWiki knows.
_SWITCH = re.compile(r"__(?=[^\W_])[^\n]{2,48}?[^_]__(?!_)")
_WIDE_SWITCH = re.compile(r"＿＿[^\n＿]{2,24}＿＿")
# Each begins with a literal mark, which re finds many times faster than a class or alternation.
_EMPTY_BRACKETS = re.compile(r"\([\s,;:.–—/-]*\)")
_EMPTY_SQUARE = re.compile(r"\[\s*\]")
_GAP_AT_END = re.compile(r"\)(?<=[\s,;]\))")
_BRACKET_START = re.compile(r"\((?:\s*[,;:][\s,;:]*|\s+)")
_BRACKET_END = re.compile(r"(?<![\s,;])[\s,;]++\)")
# The marks around removed formulas and templates: ",,", ", .", ",:".
_LOST_ITEM = re.compile(r"([,;])(?:\s*[,;])+")
_LOST_END = re.compile(r"\s*[,;]\s*([.:])(?=\s|$)(?!\s?\.)")
_LOST_BEGINNING = re.compile(r"[,;:.)]+\s+|[,;:)，、；：。）]+")
# "|url = http..." of a citation with unbalanced brackets.
_PARAMETER = re.compile(r"\s*\|\s*[A-Za-z][\w -]{0,20}=[^|.\n]{0,80}")
_LONE_BAR = re.compile(r" \|(?!\|)")
# Full-width brackets and marks of East Asia, and the marks of Arabic.
_EMPTY_WIDE = re.compile(r"（[\s,;:，、；：.–—/-]*）")
_WIDE_START = re.compile(r"（[\s，、；：,;:]+")
_WIDE_END = re.compile(r"(?<![\s，、；,;])[\s，、；,;]++）")
_WIDE_LOST = re.compile(r"[，、；](?:[\s，、；]*([，。])|\s*(?=[，、；]))")
_ARABIC_LOST = re.compile(r"([،؛])(?:\s*[،؛])+")
# "And" in the languages of sections.yaml. (If each part is a title, there is no other reading.)
_AND = re.compile(
    r"\s*[,;/&+·・、]\s*|[和与與及と]|\s+و\s*|\s+(?:and|und|et|y|e|i|och|og|en|a|an|és|ve|và|dan"
    r"|și|şi|ja|kaj|eta|un|ir|in|te|va|agus|и|і|й|та|да|ва|και|և|और|এবং|ও|및|וגם|یا)\s+"
)
_LETTERS = re.compile(r"[^\W\d_]{2}")


def paragraphs_of(text: str, language: str = "en") -> list[str]:
    """Return the paragraphs of prose that the other passes of extract.py leave.

    Args:
        text: wikitext without templates, tables, links and formatting.
        language: of the wiki, for the titles of its sections.
    """
    paragraphs: list[str] = []
    current: list[str] = []
    skipped = skipped_sections(language)
    skipping = 0  # level of the heading whose section is left out
    has_rows = _has_rows(text)

    def finish() -> None:
        if current:
            paragraph = tidy(join_lines(current))
            current.clear()
            if _is_prose(paragraph):
                paragraphs.append(paragraph)

    for line in text.split("\n"):
        line = line.strip()
        if not line:
            if current:
                finish()
            continue
        first = line[0]
        # A heading ends the section that is skipped, unless it is a sub-section of it.
        if first == "=" and line[-1] == "=":
            finish()
            level = len(line) - len(line.lstrip("="))
            if not skipping or level <= skipping:
                skipping = level if _is_skipped(line.strip("=: \t").lower(), skipped) else 0
            continue
        if skipping:
            continue
        if first in "*#:;":
            finish()
            item = line.lstrip("*#:; ")
            # A list item is kept if it reads as a sentence.
            if _is_sentence(item) and "|" not in item and "ISBN" not in item:
                current.append(item)
                finish()
        elif _is_markup(line, has_rows):
            finish()
        elif not has_rows or "||" not in line:
            current.append(line)
    finish()
    return paragraphs


def lines_of(text: str) -> list[str]:
    """Return the lines of a text whose lines are paragraphs, without lines of markup.

    Args:
        text: as for :func:`paragraphs_of`.
    """
    has_rows = _has_rows(text)
    lines = []
    for line in map(str.strip, text.split("\n")):
        if not line or (line[0] == "=" and line[-1] == "=") or _is_markup(line, has_rows):
            continue
        line = tidy(line.lstrip("*#:; "))
        if any(map(str.isalnum, line)):
            lines.append(line)
    return lines


def _has_rows(text: str) -> bool:
    """Return whether rows of an unclosed table remain; if not, "!Kung" and "a || b" are text."""
    return text[:1] == "|" or "\n|" in text or "\n |" in text


def _is_markup(line: str, has_rows: bool) -> bool:
    """Return whether a line is a row of a table, a left-over brace or a horizontal rule."""
    first = line[0]
    return first in "|}" or (first == "!" and has_rows) or line.startswith(("{|", "----"))


def tidy(text: str) -> str:
    """Close the gaps that removed markup has left in a paragraph."""
    # Each test is a fast search for a letter; most paragraphs need none of the substitutions.
    if "_" in text:
        text = _SWITCH.sub(_without_switch, text)
    if "(" in text:
        text = _EMPTY_BRACKETS.sub("", text)
        text = _BRACKET_START.sub("(", text)
    if "[" in text:
        text = _EMPTY_SQUARE.sub("", text)
    if _GAP_AT_END.search(text):
        text = _BRACKET_END.sub(")", text)
    # A single letter is found much faster than two, and most paragraphs have none of these.
    if "{" in text or "}" in text or "[" in text or "]" in text:
        for mark in ("{{", "}}", "[[", "]]"):
            text = text.replace(mark, "")
    if "|" in text:
        text = _LONE_BAR.sub(" ", _PARAMETER.sub("", text))
    if "  " in text or "\t" in text:
        text = " ".join(text.split())
    if " ," in text or " ." in text or " ;" in text:
        text = text.replace(" ,", ",").replace(" ;", ";").replace(" . ", ". ")
        if text.endswith(" ."):
            text = text[:-2] + "."
    if ",," in text or ",." in text or (";" in text and (";," in text or ",;" in text)):
        text = _LOST_END.sub(r"\1", _LOST_ITEM.sub(r"\1", text))
    if not text.isascii() and (
        "，" in text or "、" in text or "（" in text or "،" in text or "＿" in text
    ):
        text = _tidy_wide(text)
    text = text.strip()
    if text and text[0] in ",;:.)，、；：。" and (match := _LOST_BEGINNING.match(text)):
        text = text[match.end() :]
    return text


def _tidy_wide(text: str) -> str:
    """Close the gaps between full-width marks of East Asia and marks of Arabic."""
    if "＿" in text:
        text = _WIDE_SWITCH.sub(_without_switch, text)
    if "（" in text:
        text = _EMPTY_WIDE.sub("", text)
        text = _WIDE_START.sub("（", text)
        text = _WIDE_END.sub("）", text)
    text = _WIDE_LOST.sub(r"\1", text)
    return _ARABIC_LOST.sub(r"\1", text)


def _without_switch(match: re.Match[str]) -> str:
    return "" if match[0].lower() in switches() else match[0]


def _is_prose(paragraph: str) -> bool:
    """Return whether a paragraph is prose rather than a remnant of a removed box."""
    spaces = paragraph.count(" ")
    if spaces >= 5:
        return _LETTERS.search(paragraph) is not None or any(map(str.isalpha, paragraph))
    if paragraph.isascii():
        return spaces >= 2 and ends_sentence(paragraph)
    # Few spaces: a short paragraph, or a script without spaces between words.
    words = word_count(paragraph)
    return words >= 6 or (words >= 3 and ends_sentence(paragraph))


def _is_sentence(item: str) -> bool:
    """Return whether a list item is a sentence rather than a name, a title or a number."""
    if ends_sentence(item):
        return item.count(" ") >= 6 or (not item.isascii() and word_count(item) >= 7)
    # Thai and Lao do not mark the ends of sentences, so only the length decides.
    return not item.isascii() and without_marked_ends(item) and word_count(item) >= 10


def _is_skipped(title: str, skipped: frozenset[str]) -> bool:
    """Return whether a section has no prose; "Weblinks und Literatur" is two titles in one."""
    return title in skipped or all(part in skipped for part in _AND.split(title))


@lru_cache(maxsize=64)
def skipped_sections(language: str) -> frozenset[str]:
    """Return the titles of sections without prose, in lower case.

    Args:
        language: its own titles count, and those of other languages that are unambiguous.
    """
    sections, codes = _sections(), codes_with_fallbacks(language)
    own = [titles for code, titles in sections.items() if code in codes]
    others = [t for titles in sections.values() for t in titles if len(t) > 5 or not t.isascii()]
    return frozenset([*sections["en"], *(title for titles in own for title in titles), *others])


@lru_cache(maxsize=1)
def _sections() -> dict[str, list[str]]:
    sections = load_yaml(_SECTIONS_FILE.read_text("utf-8"), FastLoader)
    return {code: [title.lower() for title in titles] for code, titles in sections.items()}
