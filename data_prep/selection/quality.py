"""Rules that separate prose from other text, with the published thresholds.

- ``gopher``: Gopher's quality rules (Rae et al., arXiv:2112.11446, appendix A.1.1).
- ``repetition``: Gopher's repetition rules (the same paper, table A1).
- ``c4``: the rules of C4 (Raffel et al., arXiv:1910.10683, section 2.2) and of its code. Lines are
  removed that do not end like sentences, have fewer than three words or a very long one, or mention
  JavaScript or cookies. Documents are dropped that contain a curly bracket or "lorem ipsum", or
  keep fewer than five sentences.

datatrove has the same rules, and tests compare with it. They are implemented here because those of
datatrove need spaCy or NLTK for words and sentences: a large installation, and a download. A word
is the text between spaces; scripts without spaces are counted by letters (bertds/data/scripts.py).
The stop words are English and are checked only for English; the other rules hold for any language.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bertds.data.scripts import (
    SENTENCE_ENDS,
    has_unspaced,
    mostly_unspaced,
    without_marked_ends,
    word_count,
)
from data_prep.clean import word_set
from data_prep.selection.repetition import repetition

_STOP_WORDS = word_set("the be to of and that have with")
# Those of C4, those of other scripts, and their quotation marks.
_ENDS = (
    ".",
    "?",
    "!",
    '"',
    "'",
    "”",
    "’",
    "」",
    "』",
    *(mark for mark in SENTENCE_ENDS if not mark.isascii() and mark != "…"),
)
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)

Split = Callable[[str], list[str]]
"""Splits a text into sentences."""


def apply_rules(
    rules: tuple[str, ...], text: str, split: Split, language: str = "en"
) -> tuple[str, str]:
    """Apply sets of rules in turn.

    Args:
        rules: names from :data:`.filters.QUALITY_RULES`.
        text: paragraphs, one in a line.
        split: splits a text into sentences.
        language: language of the text; only English has stop words.

    Returns:
        The text (``c4`` removes lines from it), and the reason to drop it ("" = keep).
    """
    for rule in rules:
        reason = ""
        if rule == "gopher":
            reason = gopher(text, language)
        elif rule == "repetition":
            reason = repetition(text)
        else:
            text, reason = c4(text, split)
        if reason:
            return text, reason
    return text, ""


def gopher(text: str, language: str = "en") -> str:
    """Return why Gopher's quality rules drop a text, or "" if they keep it."""
    words = text.split()
    if mostly_unspaced(text):
        # Without visible words, the rules about word length and letters are meaningless.
        count = word_count(text)
        if not 50 <= count <= 100_000:
            return "gopher_short" if count < 50 else "gopher_long"
        return _gopher_lines(text, count)
    # The rule about length counts only words with a letter or digit, as datatrove does.
    solid = [word for word in words if any(map(str.isalnum, word))]
    if len(solid) < 50:
        return "gopher_short"
    if len(solid) > 100_000:
        return "gopher_long"
    if not 3 <= sum(map(len, solid)) / len(solid) <= 10:
        return "gopher_word_length"
    if reason := _gopher_lines(text, len(words)):
        return reason
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
        return "gopher_letters"
    if language == "en" and len(_STOP_WORDS.intersection(words)) < 2:
        return "gopher_stop_words"
    return ""


def _gopher_lines(text: str, words: int) -> str:
    """Apply the rules that count symbols and lines."""
    ellipses = text.count("...") + text.count("…")
    if max(text.count("#"), ellipses) > 0.1 * words:
        return "gopher_symbols"
    lines = [line.strip() for line in text.splitlines()]
    if sum(line.startswith(("•", "-")) for line in lines) > 0.9 * len(lines):
        return "gopher_bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "gopher_ellipses"
    return ""


def _ends(line: str) -> bool:
    return line.endswith(_ENDS) or (not line.isascii() and without_marked_ends(line))


def c4(text: str, split: Split) -> tuple[str, str]:
    """Return the lines of a text that C4 would keep, and why it is dropped ("" = kept)."""
    kept = []
    sentences = 0
    for line in text.splitlines():
        words = line.split()
        # Very long words are minified code or encoded data.
        if any(len(word) > 1000 and not has_unspaced(word) for word in words):
            continue
        line = _CITATION.sub("", line.strip())
        # Lines without an end mark are menus and headings.
        if not _ends(line) or line.endswith("..."):
            continue
        if len(words) < 3 and word_count(line) < 3:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return text, "c4_lorem_ipsum"
        if "javascript" in lower:
            continue
        if "{" in line:
            return text, "c4_curly_bracket"
        if any(policy in lower for policy in _POLICIES):
            continue
        sentences += len(split(line))
        kept.append(line)
    if sentences < 5:
        return text, "c4_few_sentences"
    return "\n".join(kept), ""
