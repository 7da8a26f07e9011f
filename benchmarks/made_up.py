"""A made-up corpus with a vocabulary, for benchmarks of preparation without a source.

Words are made of syllables and drawn by Zipf's law. Some are not in the vocabulary. Sentences and
documents have the lengths of English Wikipedia's (lognormal). Unlike real text, there are no names,
numbers or other scripts.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from bertds.data.vocabulary_file import SPECIAL_TOKENS

WORDS, KNOWN_WORDS = 60_000, 25_000
_DOCUMENTS_OF_A_FILE = 400
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = ["".join(pair) for pair in product("bdfghklmnprstvw", "aeiou")]


def made_up_words(generator: np.random.Generator) -> list[str]:
    """Return different words of one to four syllables, the commonest first."""
    words: dict[str, None] = {}
    while len(words) < WORDS:
        count = min(4, 1 + len(words) // 50)  # the commonest words are short
        chosen = generator.integers(0, len(_SYLLABLES), generator.integers(1, count + 1))
        words["".join(_SYLLABLES[i] for i in chosen)] = None
    return list(words)


def write_vocabulary(words: list[str], path: Path) -> None:
    """Write a vocab.txt: the commonest words, and syllables and letters for the others."""
    pieces = [*_LETTERS, *_SYLLABLES]
    tokens = [*SPECIAL_TOKENS.values(), ".", ",", *pieces, *(f"##{p}" for p in pieces)]
    tokens = list(dict.fromkeys([*tokens, *words[:KNOWN_WORDS]]))
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")


def write_corpus(folder: Path, megabytes: float) -> tuple[Path, Path]:
    """Write extracted articles and a vocabulary below a folder; return both paths."""
    generator = np.random.default_rng(0)
    words = made_up_words(generator)
    write_vocabulary(words, folder / "vocab.txt")
    shares = np.cumsum(1 / (np.arange(WORDS) + 2.7))
    articles = folder / "articles"
    articles.mkdir()
    written, number = 0.0, 0
    while written < megabytes * 1e6:
        documents = []
        while len(documents) < _DOCUMENTS_OF_A_FILE and written < megabytes * 1e6:
            text = article(words, shares / shares[-1], generator)
            documents.append(f'<doc id="1" url="" title="">\n\n{text}\n\n</doc>\n')
            written += len(text)
        (articles / f"wiki_{number:02d}").write_text("".join(documents), encoding="utf-8")
        number += 1
    return articles, folder / "vocab.txt"


def article(words: list[str], shares: np.ndarray, generator: np.random.Generator) -> str:
    """Return a document, one paragraph a line."""
    sentences = []
    for _ in range(max(1, int(generator.lognormal(2.9, 1.1)))):
        length = max(1, int(generator.lognormal(3.1, 0.55)))
        drawn = [words[i] for i in np.searchsorted(shares, generator.random(length))]
        if length > 12:
            drawn[length // 2] += ","
        sentences.append(" ".join(drawn).capitalize() + ".")
    return "\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))
