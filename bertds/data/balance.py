"""Divides a global batch so that every micro batch has nearly the same number of real tokens.

Without padding the cost of a row is proportional to its length, so ranks with longer rows would
make the others wait. The samples of a global batch do not change, nor does the number of rows per
micro batch: only which rank computes which rows. The division is a pure function of the rows'
lengths. So every rank finds the same one on its own, and a resumed run finds it again.
"""

from __future__ import annotations

import numpy as np


def balance_rows(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Distribute rows over micro batches, the same number to each, with nearly equal sums.

    Rows are dealt longest first, in rounds of one row per micro batch. In each round the micro
    batch with the fewest tokens so far gets the longest row. The sums then differ by at most the
    longest row, and for the lengths of real text by far less.

    Args:
        lengths: int64 [B], tokens of each row of the global batch, in its order.
        bins: number of micro batches of the step, over all ranks; divides B.

    Returns:
        int64 [bins, B / bins]: the rows of each micro batch, ascending. Rank 0's micro batches come
        first. Ties are decided by position, so the result is deterministic.
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
