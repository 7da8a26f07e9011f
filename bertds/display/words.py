"""Formats numbers and times for display."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence, Sized
from pathlib import Path


def short(value: float) -> str:
    """Return a large number in short form: 1.3 M."""
    for size, word in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 shard, 1,200 shards."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def and_more(names: Sized) -> str:
    """Return what follows the first of several names: "", or `` and 2 more``."""
    return f" and {len(names) - 1:,} more" if len(names) > 1 else ""


def listed(items: Sequence[object], most: int) -> str:
    """Return the first ``most`` items of a list, with `` ...`` if there are more."""
    return ", ".join(map(str, items[:most])) + (" ..." if len(items) > most else "")


def in_words(seconds: float) -> str:
    """Return a duration in a suitable unit: ``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def size(number: float) -> str:
    """Return a number of bytes in words: ``12.3 MiB``, ``1.5 GiB``."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def cells(text: str) -> int:
    """Return the width of a text in Latin letters; East Asian ones are as wide as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shorten(text: str, most: int, head: int) -> str:
    """Return a text of at most ``most`` cells; of a longer one, the middle is omitted.

    Args:
        text: the text.
        most: see :func:`cells`.
        head: the part of them for the beginning.
    """
    if cells(text) <= most:
        return text
    begin = end = text
    while cells(begin) > head:
        begin = begin[:-1]
    while cells(end) > most - head - 1:
        end = end[1:]
    return f"{begin}…{end}"


def shell_word(path: Path | str) -> str:
    """Return a path as a word of a printed command, so that the command can be copied to a shell.

    A name such as ``-data`` gets a ``./``: a command would take it for an option.
    """
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
