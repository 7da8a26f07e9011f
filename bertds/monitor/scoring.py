"""Scores a model on held-out micro batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from bertds.data.batches import MicroBatch
from bertds.engine.interface import ModelOutput
from bertds.monitor.metrics import RunningSums, means


def score(
    batches: Iterable[MicroBatch],
    forward: Callable[[MicroBatch], ModelOutput],
    global_sums: Callable[[list[float]], Iterable[float | torch.Tensor]],
    next_sentence: bool,
    *,
    passes: int | None = None,
    filler: Callable[[], Iterable[MicroBatch]] | None = None,
) -> dict[str, float]:
    """Score micro batches with fixed masks. Every rank scores its own part, which may be empty.

    Args:
        batches: this rank's micro batches.
        forward: returns an output with loss sums and correct counts, without gradients.
        global_sums: sums a list over the ranks.
        next_sentence: whether the model has a next-sentence head and the rows have labels.
        passes: make exactly this number of forward passes, the same on every rank. Under ZeRO-3 a
            forward pass is collective, and a rank with fewer batches would block the others. The
            extra passes do not count.
        filler: returns batches for the extra passes, for a rank that has none of its own.

    Returns:
        ``loss, mlm_loss, mlm_accuracy`` and, with the head, ``nsp_loss, nsp_accuracy`` and its
        baseline ``nsp_majority``, the share of the more frequent label; and ``rows`` and
        ``masked``, the counts behind them.
    """
    sums, done, random_pairs = RunningSums(), 0, 0
    last: MicroBatch | None = None
    for batch in batches:
        sums.add(forward(batch), int(batch.masked_lm_ids.numel()), batch.rows)
        done, last = done + 1, batch
        if batch.next_sentence_labels is not None:
            random_pairs += int(batch.next_sentence_labels.sum())
    if passes is not None and done < passes:
        if last is None and filler is not None:
            last = next(iter(filler()))
        for _ in range(passes - done):
            assert last is not None  # a rank without batches of its own is given a filler
            forward(last)
    *totals, positive = [float(v) for v in global_sums([*sums.take(), float(random_pairs)])]
    scores = means(totals, next_sentence)
    if next_sentence:
        scores["nsp_majority"] = max(positive, totals[5] - positive) / max(totals[5], 1.0)
    result = {key: float(f"{value:.8g}") for key, value in scores.items()}
    return {**result, "masked": totals[4], "rows": totals[5]}
