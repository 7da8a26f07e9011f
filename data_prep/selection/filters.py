"""Filters that look at one document at a time.

They are applied in this order:

```text
words (--min-words, --max-words) -> language -> quality rules -> overlap with test files
```

Each drop has a reason that the manifest counts. A filter is a pure function of the text, so the
result does not depend on workers and units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.data.scripts import word_count
from bertds.errors import ConfigError
from data_prep.document import CONTAMINATED, LANGUAGE, TOO_LONG, TOO_SHORT

QUALITY_RULES = ("gopher", "repetition", "c4")
"""Rules of ``quality.py``, which is imported only where it is used, since it loads a compiler."""

Filter = Callable[[str], tuple[str, str]]
"""Maps a text to the text that is kept, and the reason to drop the document ("" = keep)."""


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Requirements on a document; by default there are none."""

    min_words: int = 0
    max_words: int = 0
    """0 = no limit."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes; none = any language."""
    language_score: float = 0.65
    quality: tuple[str, ...] = ()
    """Sets of rules, applied in this order."""
    test_files: tuple[Any, ...] = ()
    """:class:`data_prep.selection.decontaminate.TestFile` of each ``--decontaminate``."""
    test_ngram: int = 13

    def __post_init__(self) -> None:
        for option, value in (("--min-words", self.min_words), ("--max-words", self.max_words)):
            if value < 0:
                raise ConfigError(f"{option} {value}: allowed: 0 or more (0 = no limit)")
        if 0 < self.max_words < self.min_words:
            raise ConfigError(
                f"--max-words {self.max_words} is below --min-words {self.min_words}, so every "
                "document would be dropped"
            )
        if not 0.0 <= self.language_score <= 1.0:
            raise ConfigError(f"--language-score {self.language_score}: allowed: 0 to 1")
        for rules in self.quality:
            if rules not in QUALITY_RULES:
                raise ConfigError(f"--quality {rules}: allowed: {', '.join(QUALITY_RULES)}")


def document_filter(
    settings: FilterSettings,
    table: Path | None,
    split: Callable[[str], list[str]],
    language: str = "en",
) -> Filter | None:
    """Return the filter for some settings; None if they require nothing.

    Args:
        settings: the requirements.
        table: the n-grams of ``--decontaminate``, see :class:`.decontaminate.NgramTable`.
        split: splits a text into sentences (C4 counts them).
        language: language of the text (Gopher's stop words are English).
    """
    if settings == FilterSettings():
        return None
    # Cheap filters come first. The overlap is tested last, since c4 may shorten the text.
    steps: list[Filter] = []
    if settings.min_words or settings.max_words:
        steps.append(_words(settings.min_words, settings.max_words))
    if settings.languages:
        steps.append(_language(settings.languages, settings.language_score))
    if settings.quality:
        steps.append(_quality(settings.quality, split, language))
    if table is not None:
        steps.append(_overlap(table))

    def apply(text: str) -> tuple[str, str]:
        for step in steps:
            text, reason = step(text)
            if reason:
                return text, reason
        return text, ""

    return apply


def _words(least: int, most: int) -> Filter:
    def step(text: str) -> tuple[str, str]:
        words = word_count(text)
        if words < least:
            return text, TOO_SHORT
        return text, TOO_LONG if 0 < most < words else ""

    return step


def _language(codes: tuple[str, ...], least: float) -> Filter:
    from data_prep.selection.language import is_in

    return lambda text: (text, "" if is_in(text, codes, least) else LANGUAGE)


def _quality(rules: tuple[str, ...], split: Callable[[str], list[str]], language: str) -> Filter:
    from data_prep.selection.quality import apply_rules

    return lambda text: apply_rules(rules, text, split, language)


def _overlap(table: Path) -> Filter:
    from data_prep.selection.decontaminate import Overlaps

    overlaps = Overlaps.load(table)
    return lambda text: (text, CONTAMINATED if overlaps.found_in(text) else "")
