"""Cuts a global batch so that every micro-batch has nearly the same number of real tokens.

Without padding the cost of a row is proportional to its length, so ranks that got longer rows would
keep the others waiting. Which samples a global batch holds is not touched, nor how many rows a
micro-batch has: only who computes which of them. The cut is a pure function of the rows' lengths,
so every rank finds the same one on its own, and a resumed run finds it again.
"""

from __future__ import annotations

import numpy as np


def balance_rows(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Deal rows out to micro-batches, equally many to each, with sums as equal as may be.

    Longest first, in rounds of one row for each micro-batch; in each round the micro-batch with
    the fewest tokens so far gets the longest row. The sums then differ by at most the longest
    row, and for lengths as real text has them by far less.

    Args:
        lengths: int64 [B], tokens of each row of the global batch, in its order.
        bins: micro-batches of the step, over all ranks; divides B.

    Returns:
        int64 [bins, B / bins]: the rows of each micro-batch, ascending. Micro-batches are in the
        order rank 0's first, first one; ties are settled by position, so nothing is left to chance.
    """
    rows = len(lengths)
    assert rows % bins == 0, f"{rows} rows in {bins} micro batches"
    order = np.argsort(-lengths, kind="stable").reshape(-1, bins)
    taken = np.empty((bins, rows // bins), np.int64)
    tokens = np.zeros(bins, np.int64)
    for number, longest_first in enumerate(order):
        emptiest_first = np.argsort(tokens, kind="stable")
        taken[emptiest_first, number] = longest_first
        tokens[emptiest_first] += lengths[longest_first]
    return np.sort(taken, axis=1)
