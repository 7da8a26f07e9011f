"""The last pass from wikitext to prose: lines to paragraphs, and the gaps closed in them."""

from __future__ import annotations

import re

_SKIPPED_SECTIONS = frozenset(
    [
        "references",
        "external links",
        "see also",
        "further reading",
        "notes",
        "notes and references",
        "references and notes",
        "footnotes",
        "bibliography",
        "sources",
        "citations",
        "works cited",
        "discography",
        "filmography",
        "gallery",
        "external link",
        "references and further reading",
        "selected bibliography",
        "literature",
    ]
)
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
# Each begins with a literal mark, which re finds many times faster than a class or a choice.
_EMPTY_BRACKETS = re.compile(r"\([\s,;:.–—/-]*\)")
_EMPTY_SQUARE = re.compile(r"\[\s*\]")
_GAP_AT_END = re.compile(r"\)(?<=[\s,;]\))")
_BRACKET_START = re.compile(r"\((?:\s*[,;:][\s,;:]*|\s+)")
_BRACKET_END = re.compile(r"(?<![\s,;])[\s,;]++\)")
# What removed formulas and templates leave between two marks: ",,", ", .", ",:".
_LOST_ITEM = re.compile(r"([,;])(?:\s*[,;])+")
_LOST_END = re.compile(r"\s*[,;]\s*([.:])(?=\s|$)(?!\s?\.)")
_LOST_BEGINNING = re.compile(r"[,;:.)]+\s+|[,;:)]+")
# "|url = http..." of a citation whose brackets do not match.
_PARAMETER = re.compile(r"\s*\|\s*[A-Za-z][\w -]{0,20}=[^|.\n]{0,80}")
_LETTERS = re.compile(r"[^\W\d_]{2}")
_SENTENCE_END = (".", "!", "?", '."', '?"', '!"', ".”", "?”", "!”", ".)", "。")


def paragraphs_of(text: str) -> list[str]:
    """Return the paragraphs of prose in what the passes of wikitext.py leave."""
    paragraphs: list[str] = []
    current: list[str] = []
    skipping = 0  # level of the heading whose section is left out

    def finish() -> None:
        if current:
            paragraph = tidy(" ".join(current))
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
        if first == "=" and line[-1] == "=":
            finish()
            level = len(line) - len(line.lstrip("="))
            if not skipping or level <= skipping:
                skipping = level if line.strip("=: \t").lower() in _SKIPPED_SECTIONS else 0
            continue
        if skipping:
            continue
        if first in "*#:;":
            finish()
            item = line.lstrip("*#:; ")
            # A list item is kept if it reads as a sentence.
            if (
                item.endswith(_SENTENCE_END)
                and item.count(" ") >= 6
                and "|" not in item
                and "ISBN" not in item
            ):
                current.append(item)
                finish()
        elif first in "|!{}" or line.startswith("----"):
            finish()
        elif "||" not in line:
            current.append(line)
    finish()
    return paragraphs


def tidy(text: str) -> str:
    """Close the gaps that removed markup left."""
    if "_" in text:
        text = _MAGIC_WORD.sub("", text)
    if "(" in text:
        text = _EMPTY_BRACKETS.sub("", text)
        text = _BRACKET_START.sub("(", text)
    if "[" in text:
        text = _EMPTY_SQUARE.sub("", text)
    if _GAP_AT_END.search(text):
        text = _BRACKET_END.sub(")", text)
    # One letter is found much faster than two, and most paragraphs have none of these.
    if "{" in text or "}" in text or "[" in text or "]" in text:
        for mark in ("{{", "}}", "[[", "]]"):
            text = text.replace(mark, "")
    if "  " in text or "\t" in text:
        text = " ".join(text.split())
    if "|" in text:
        text = _PARAMETER.sub("", text).replace(" |", " ")
    if " ," in text or " ." in text or " ;" in text:
        text = text.replace(" ,", ",").replace(" ;", ";").replace(" . ", ". ")
        if text.endswith(" ."):
            text = text[:-2] + "."
    if ",," in text or ",." in text or (";" in text and (";," in text or ",;" in text)):
        text = _LOST_END.sub(r"\1", _LOST_ITEM.sub(r"\1", text))
    text = text.strip()
    if text and text[0] in ",;:.)" and (match := _LOST_BEGINNING.match(text)):
        text = text[match.end() :]
    return text


def _is_prose(paragraph: str) -> bool:
    """Tell a paragraph from what a removed box left behind."""
    spaces = paragraph.count(" ")
    if spaces >= 5:
        return _LETTERS.search(paragraph) is not None
    return spaces >= 2 and paragraph.endswith(_SENTENCE_END)
