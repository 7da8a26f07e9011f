"""Removes ``''italic''`` and ``'''bold'''``, balanced over each line as in MediaWiki.

The rules are those that MediaWiki documents for its parser's ``doQuotes``. Four quotes are an
apostrophe and bold, more than five are apostrophes and both. If a line has an odd number of both,
one bold is an apostrophe and italic: the first one after a word of one letter ("l'''italique''"),
else after a longer word ("''Eagle'''s"), else after a space.
"""

from __future__ import annotations

import re

_QUOTES = re.compile(r"(''+)")
_BOLD = "'''"


def without_quotes(text: str) -> str:
    """Return a text without marks for italic and bold, with apostrophes kept."""
    pieces = _QUOTES.split(text)
    bold = italic = 0
    first = 1  # index of the line's first mark
    # split() alternates between text (even) and marks (odd).
    for i in range(1, len(pieces), 2):
        length = len(pieces[i])
        if length == 3:
            bold += 1
        elif length == 2:
            italic += 1
        else:
            kept = 1 if length == 4 else length - 5
            pieces[i - 1] += "'" * kept
            bold += 1
            italic += length > 4
            pieces[i] = _BOLD if length == 4 else ""
        # The line ends in the text after this mark.
        if "\n" in pieces[i + 1]:
            if bold & italic & 1:
                _keep_apostrophe(pieces, first, i)
            bold = italic = 0
            first = i + 2
    if bold & italic & 1:
        _keep_apostrophe(pieces, first, len(pieces) - 2)
    return "".join(pieces[::2])


def _keep_apostrophe(pieces: list[str], first: int, last: int) -> None:
    """Treat one bold mark of a line as an apostrophe and italic."""
    after_word = after_space = 0
    for i in range(first, last + 1, 2):
        if pieces[i] != _BOLD:
            continue
        before = pieces[i - 1]
        if before[-1:] == " ":
            after_space = after_space or i
        elif before[-2:-1] == " ":
            pieces[i - 1] += "'"
            return
        else:
            after_word = after_word or i
    if after_word or after_space:
        pieces[(after_word or after_space) - 1] += "'"
