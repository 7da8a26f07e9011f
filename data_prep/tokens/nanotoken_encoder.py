"""``--tokeniser nanotoken``: WordPiece by the PyPI package ``nanotoken``, watched while it works.

It is fast, young, and by one author. Alone it is quicker than our own way
(data_prep/tokens/wordpiece.py) on text that is new to both; what is gained goes into watching it.
It is compared with ``tokenizers`` on a sample of every unit: ten sentences of each half megabyte
(every four-hundredth of short ones), and as many again of those beyond ASCII, where tokenizers
disagree first; more would cost what it saves. At the first difference the unit is done again by our
own way, and this process no longer uses nanotoken. The setting is in the manifest, since a
difference outside the samples would go unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bertds.data.tokenizer_json import WordPieceRules
from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from bertds.errors import ConfigError

_EVERY = 400
_LEAST = 10
"""Sentences of a batch that are compared at least."""


class TokensDiffer(Exception):
    """nanotoken and tokenizers disagree on a sentence."""


def check_installed() -> None:
    """Refuse the option where the package is missing."""
    try:
        import nanotoken  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tokeniser nanotoken: the package is missing; install it with: pip install "
            "'bertds[nanotoken]'"
        ) from error


class NanotokenEncoder:
    """Sentences to ids, as :class:`data_prep.tokens.wordpiece.WordPieceEncoder` does it."""

    def __init__(self, tokens: Sequence[str], rules: WordPieceRules | bool) -> None:
        from nanotoken import WordPieceTokenizer

        vocabulary = {token: number for number, token in enumerate(tokens)}
        self.unknown = vocabulary["[UNK]"]
        self.dtype = np.dtype(np.uint16 if len(tokens) <= 65_535 else np.uint32)
        # Without added tokens: text that spells [MASK] is text.
        self._exact = wordpiece_pipeline(vocabulary, rules)
        self._fast: Any = WordPieceTokenizer.from_json(self._exact.to_str())

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise sentences.

        Returns:
            ids: [T], all sentences' tokens in a row (uint16, uint32 for large vocabularies).
            lengths: int64 [sentences], tokens of each sentence; may be 0.

        Raises:
            TokensDiffer: a sentence of the sample has other ids.
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
