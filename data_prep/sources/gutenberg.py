"""Removes Project Gutenberg's frame around a book: header, small print, licence.

```text
since 2003   header  *** START OF ...  book  *** END OF ...  licence
before       header  ***START**THE SMALL PRINT!  ...  *END*THE SMALL PRINT!  book
some         header  book  *** START: FULL LICENSE ***  ...  *END THE SMALL PRINT!
volumes      header  *** START OF ...  book  *** END OF ...  *** START OF ...  book  ...
```

A marker counts only at a plausible place: a line in the middle of a long book that resembles one
must not cut off the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_START = re.compile(r"[ \t]*\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG[^\n]*\n?")
_END = re.compile(
    r"[ \t]*(?:\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG"
    r"|End of (?:the |this )?Project Gutenberg"
    r"|Ende dieses Proje[ck]t Gutenberg|Fin de Project Gutenberg)",
    re.IGNORECASE,
)
_PRINT_BEGIN = re.compile(
    r"[ \t]*\*\*\* ?START(?:\*\*| ?\*\* ?|: )(?:THE SMALL PRINT|FULL LICENSE)[^\n]*\n?"
)
_PRINT_END = re.compile(r"[ \t]*\*END ?(?:\*\*?)? ?THE SMALL PRINT![^\n]*\n?")
_HEADER_LINE = re.compile(
    r"This header should be the first thing seen|Please take a look at the important information "
    r"in this header|Copyright laws are changing all over the world|\**Welcome To The World of "
    r"Free Plain Vanilla|\**These e(?:Books|texts) (?:Are|Were) Prepared By|We encourage you to "
    r"keep this file",
    re.IGNORECASE,
)
_HEADER_LETTERS = "*CPTW"
_PROJECT = (
    *("Project Gutenberg", "PROJECT GUTENBERG", "project gutenberg"),
    *("Projekt Gutenberg", "PROJEKT GUTENBERG"),
)
_LICENCE = (
    "FULL LICENSE",
    "Full Project Gutenberg License",
    "Full Project Gutenberg-tm License",
    "SMALL PRINT",
    "Updated editions will replace the previous one",
    "This file should be named",
)
_LONGEST_FOOTER = 300
"""Maximum number of characters between two end markers: file names, dates, acknowledgements."""
_LONGEST_FRAME = 40_000
"""Maximum number of characters of header, small print or licence (the licence has 19,000)."""


def without_frame(text: str) -> str:
    """Return a book without the frame of Project Gutenberg.

    Args:
        text: the file, with line feeds as line ends.
    """
    text = _without_small_print(text)
    starts = list(_markers(text, _START, ("PROJECT GUTENBERG",)))
    # If most of the text precedes the first start marker, the book is before it.
    if starts and _is_late(starts[0], text):
        return _up_to_end(text[: starts[0].start()])
    if not starts:
        return _up_to_end(text)
    # A file of several volumes has a start marker for each.
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return "\n\n".join(
        _up_to_end(text[start.end() : end]) for start, end in zip(starts, ends, strict=True)
    )


def is_header_line(paragraph: str) -> bool:
    """Return whether a paragraph is one of the notices of the header."""
    return paragraph[:1] in _HEADER_LETTERS and _HEADER_LINE.match(paragraph) is not None


def _markers(text: str, marker: re.Pattern[str], words: tuple[str, ...]) -> Iterator[re.Match[str]]:
    """Yield the lines that a pattern matches, in their order.

    Args:
        text: a book.
        marker: matches from the beginning of a line.
        words: each such line contains one of these. The search for words takes 10% of the time of
            the pattern.
    """
    lines = set()
    for word in words:
        at = text.find(word)
        while at >= 0:
            lines.add(text.rfind("\n", 0, at) + 1)
            at = text.find(word, at + len(word))
    for begin in sorted(lines):
        if match := marker.match(text, begin):
            yield match


def _without_small_print(text: str) -> str:
    end = next(_markers(text, _PRINT_END, ("SMALL PRINT!",)), None)
    begin = next(_markers(text, _PRINT_BEGIN, ("THE SMALL PRINT", "FULL LICENSE")), None)
    if begin is not None and (end is None or begin.start() < end.start()):
        before, after = text[: begin.start()], text[end.end() :] if end is not None else ""
        # The small print precedes the book, or (in some files of 2003) follows it.
        return after if len(after.strip()) > len(before.strip()) else before
    if end is None:
        return text
    # Only the end is marked. If nothing follows, it is also the end of the file.
    after = text[end.end() :]
    return after if _up_to_end(after).strip() else text[: end.start()]


def _is_late(start: re.Match[str], text: str) -> bool:
    before = start.start()
    return before > _LONGEST_FRAME and before > len(text) - start.end()


def _up_to_end(text: str) -> str:
    """Return the text before the end marker that is followed by no more than a licence.

    This is normally the last marker, since a book may quote the line. It is an earlier one if
    there is only the licence or a few lines between the two.
    """
    end = len(text)
    for marker in reversed(list(_markers(text, _END, _PROJECT))):
        if len(text) - marker.start() > _LONGEST_FRAME:
            break
        if end < len(text) and not _is_frame(text[marker.end() : end]):
            break
        end = marker.start()
    return text[:end]


def _is_frame(text: str) -> bool:
    """Return whether the text between two end markers is part of the frame, not of the book."""
    if len(text) < _LONGEST_FOOTER:
        return True
    return any(words in text for words in _LICENCE)
