"""``--tokeniser nanotoken``: WordPiece by the PyPI package ``nanotoken``, checked while it works.

The package is fast, young, and by one author. On text that is new to both it is faster than our own
encoder (data_prep/tokens/wordpiece.py). The gain is spent on checks: it is compared with
``tokenizers`` on a sample of every unit. The sample is ten sentences per half megabyte (1 in 400 of
short ones), and the same number beyond ASCII, where tokenizers disagree first; more would cost what
it saves. At the first difference the unit is encoded again by our own encoder, and this process no
longer uses nanotoken. The setting is in the manifest, because a difference outside the samples
would not be noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import ConfigError

_EVERY = 400
_LEAST = 10
"""Minimum number of sentences per batch that are compared."""


class TokensDiffer(Exception):
    """nanotoken and tokenizers disagree on a sentence."""


def check_installed() -> None:
    """Raise ConfigError if the package is not installed."""
    try:
        import nanotoken  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tokeniser nanotoken: the package is missing; install it with: pip install "
            "'bertds[nanotoken]'"
        ) from error


class NanotokenEncoder:
    """Encodes sentences like :class:`data_prep.tokens.wordpiece.WordPieceEncoder`."""

    def __init__(self, tokens: Sequence[str], rules: WordPieceRules | bool) -> None:
        from nanotoken import WordPieceTokenizer

        vocabulary = {token: number for number, token in enumerate(tokens)}
        self.unknown = vocabulary["[UNK]"]
        self.dtype = np.dtype(np.uint16 if len(tokens) <= 65_535 else np.uint32)
        # Without added tokens, so that the text [MASK] is ordinary text.
        self._exact = wordpiece_pipeline(vocabulary, rules)
        self._fast: Any = WordPieceTokenizer.from_json(self._exact.to_str())

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize sentences.

        Returns:
            ids: [T], the tokens of all sentences (uint16, or uint32 for large vocabularies).
            lengths: int64 [sentences], number of tokens per sentence; may be 0.

        Raises:
            TokensDiffer: ``tokenizers`` gives a sentence of the sample different ids.
        """
        texts = list(sentences)
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, from JSON
            texts = [s.encode("utf-8", "replace").decode() for s in texts]
        ids, offsets = self._fast.encode_batch(texts, add_special_tokens=False, parallel=False)
        self._compare(texts, ids, offsets)
        return ids.astype(self.dtype), np.diff(offsets)

    def _compare(self, texts: list[str], ids: np.ndarray, offsets: np.ndarray) -> None:
        wanted = max(_LEAST, len(texts) // _EVERY)
        beyond = [number for number, text in enumerate(texts) if not text.isascii()]
        sample = {*_spread(range(len(texts)), wanted), *_spread(beyond, wanted)}
        chosen = sorted(sample)
        exact = self._exact.encode_batch_fast([texts[n] for n in chosen], add_special_tokens=False)
        for number, encoding in zip(chosen, exact):
            if ids[offsets[number] : offsets[number + 1]].tolist() != encoding.ids:
                raise TokensDiffer(texts[number])


def _spread(numbers: Sequence[int], count: int) -> Sequence[int]:
    """Return about ``count`` of the numbers, evenly spread."""
    return numbers[:: max(1, len(numbers) // count)]
