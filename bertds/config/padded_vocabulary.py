"""The rows of the word embeddings inside a model. cost_model counts them too, without torch."""

from __future__ import annotations

VOCABULARY_MULTIPLE = 64
"""The word embeddings are padded to a multiple of this number of rows, for faster products."""


def padded_vocabulary(vocab_size: int) -> int:
    """Return the number of rows of the word embeddings inside the model."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
