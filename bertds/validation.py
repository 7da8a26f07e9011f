"""Scoring on held-out documents: masked-LM loss and accuracy, next-sentence accuracy, apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bertds.metrics import Sums, means


def score(
    batches: Iterable[Any],
    forward: Callable[[Any], Any],
    global_sums: Callable[[list[float]], Any],
    next_sentence: bool,
) -> dict[str, float]:
    """Score micro batches with fixed masks; every rank brings its own part, perhaps none.

    Args:
        batches: this rank's micro batches.
        forward: gives an output with loss sums and correct counts, without gradients.
        global_sums: sums a list over the ranks.
        next_sentence: whether the model has a next-sentence head.

    Returns:
        ``loss, mlm_loss, mlm_accuracy`` and, with the head, ``nsp_loss, nsp_accuracy``; and
        ``rows`` and ``masked``, the counts behind them.
    """
    sums = Sums()
    for batch in batches:
        sums.add(forward(batch), int(batch.masked_lm_ids.numel()), batch.rows)
    totals = [float(value) for value in global_sums(sums.take())]
    result = {key: float(f"{value:.8g}") for key, value in means(totals, next_sentence).items()}
    return {**result, "masked": totals[4], "rows": totals[5]}
