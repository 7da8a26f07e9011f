"""Masked positions of a row: exactly n of them, 80% [MASK], 10% unchanged, 10% random.

``n = min(max_predictions, max(1, round(masked_lm_prob * length)))``, where ``length`` counts [CLS]
and [SEP] (which are never chosen) and ``round`` is Python's (half to even), as in Google's
``create_pretraining_data.py``. The n positions are a uniform subset of the others.

The random 10% is uniform over the whole vocabulary: it may be [PAD], [unused7] or the token
itself, as in every published implementation (Google, NVIDIA, Intel, transformers); nothing is
excluded.

Whole words: a piece that begins with ``##`` belongs to the word before it. Words are taken in
random order. A word that would exceed n is skipped, so a row can have fewer than n. Unlike in
Google's code, a ``##`` piece right after [CLS] or [SEP] (a word cut by truncation) is a separate
word: it is not joined to the last word of the other segment. ``ngram > 1`` takes runs of up to this
number of words, a run of k with probability proportional to 1/k, shortened if it would exceed n
(ALBERT).

The loops themselves are in kernels.py.
"""

from __future__ import annotations

import numpy as np

from bertds.data.rng import probability_threshold


def predictions_by_length(
    sequence_length: int, special: int, masked_lm_prob: float, max_predictions: int
) -> np.ndarray:
    """Return n for every row length, int64 [sequence_length + 1].

    Args:
        sequence_length: S.
        special: number of special tokens per row (3 for pairs, 2 for one segment).
        masked_lm_prob: fraction of the row's tokens.
        max_predictions: maximum number of masked positions per row.
    """
    lengths = range(sequence_length + 1)
    wanted = (min(max_predictions, max(1, round(n * masked_lm_prob))) for n in lengths)
    # At least one ordinary token must be left to mask.
    return np.array([max(0, min(w, n - special)) for n, w in enumerate(wanted)], dtype=np.int64)


def ngram_thresholds(ngram: int) -> np.ndarray:
    """Return uint64 [ngram]: a run has k words if entry k - 1 is the first above ``draw >> 32``."""
    weights = np.array([1 / k for k in range(1, ngram + 1)])
    cumulative = np.cumsum(weights) / weights.sum()
    thresholds = [probability_threshold(float(p)) for p in cumulative]
    thresholds[-1] = 1 << 32  # rounding must not leave a draw above all thresholds
    return np.array(thresholds, dtype=np.uint64)
