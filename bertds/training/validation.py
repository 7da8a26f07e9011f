"""Scoring on held-out documents: masked-LM loss and accuracy, next-sentence accuracy, apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch

from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch
from bertds.data.loader import validation_batches
from bertds.data.sources.base import Source
from bertds.engine.interface import ModelOutput, TrainingEngine
from bertds.commands.evaluate import unigram_entropy
from bertds.monitor.metrics import Sums, means


def score(
    batches: Iterable[MicroBatch],
    forward: Callable[[MicroBatch], ModelOutput],
    global_sums: Callable[[list[float]], Iterable[float | torch.Tensor]],
    next_sentence: bool,
    *,
    passes: int | None = None,
    filler: Callable[[], Iterable[MicroBatch]] | None = None,
) -> dict[str, float]:
    """Score micro batches with fixed masks; every rank brings its own part, perhaps none.

    Args:
        batches: this rank's micro batches.
        forward: gives an output with loss sums and correct counts, without gradients.
        global_sums: sums a list over the ranks.
        next_sentence: whether the model has a next-sentence head.
        passes: make exactly so many forward passes, the same number on every rank: under ZeRO-3 a
            forward pass is a collective, and a rank with fewer batches would leave the others
            waiting for ever. The extra ones do not count.
        filler: gives batches for the extra passes to a rank that has none of its own.

    Returns:
        ``loss, mlm_loss, mlm_accuracy`` and, with the head, ``nsp_loss, nsp_accuracy`` and its
        baseline ``nsp_majority``, the share of the more frequent label; and ``rows`` and
        ``masked``, the counts behind them.
    """
    sums, done, random_pairs = Sums(), 0, 0
    last: MicroBatch | None = None
    for batch in batches:
        sums.add(forward(batch), int(batch.masked_lm_ids.numel()), batch.rows)
        done, last = done + 1, batch
        if batch.next_sentence_labels is not None:
            random_pairs += int(batch.next_sentence_labels.sum())
    if passes is not None and done < passes:
        if last is None and filler is not None:
            last = next(iter(islice(filler(), 1)))
        for _ in range(passes - done):
            assert last is not None  # a rank without batches of its own is given a filler
            forward(last)
    *totals, positive = [float(v) for v in global_sums([*sums.take(), float(random_pairs)])]
    scores = means(totals, next_sentence)
    if next_sentence:
        scores["nsp_majority"] = max(positive, totals[5] - positive) / max(totals[5], 1.0)
    result = {key: float(f"{value:.8g}") for key, value in scores.items()}
    return {**result, "masked": totals[4], "rows": totals[5]}


class Validator:
    """Scores one run's model on its held-out rows.

    Args:
        config: the recipe.
        source: the held-out rows.
        engine: for forward passes and sums over the ranks.
    """

    def __init__(self, config: Config, source: Source, engine: TrainingEngine) -> None:
        self.config = config
        self.source = source
        self.engine = engine
        self._entropy: float | None = None
        self.micro_batch = config.validation.micro_batch_size or engine.batch.micro_batch_size

    def score(self) -> dict[str, float]:
        """Return losses and accuracies with their baselines; see :func:`score`. Collective.

        Rank 0 adds ``unigram_entropy`` where the text is known: the masked-LM loss of a model that
        knows the frequencies of the words and nothing else.
        """
        config, engine = self.config, self.engine
        rows = self.source.with_seed(config.run.seed).samples_in_epoch(0)
        rows = min(rows, config.validation.max_samples or rows)
        most_rows = -(-rows // engine.world_size)
        scores = score(
            self._batches(engine.rank, engine.world_size),
            lambda batch: engine.eval_forward(batch.to(engine.device)),
            engine.global_sums,
            config.model.next_sentence,
            passes=-(-most_rows // self.micro_batch),
            filler=lambda: self._batches(0, 1),
        )
        if engine.rank == 0:  # which writes the line; the text is counted once
            if self._entropy is None:
                counts = self.source.token_counts()
                self._entropy = 0.0 if counts is None else unigram_entropy(counts)
            if self._entropy:
                scores["unigram_entropy"] = float(f"{self._entropy:.8g}")
        return scores

    def _batches(self, rank: int, world_size: int) -> Iterable[MicroBatch]:
        return validation_batches(
            self.source,
            self.config.data,
            self.micro_batch,
            rank,
            world_size,
            seed=self.config.run.seed,
            max_samples=self.config.validation.max_samples,
            mask_rate=held_out_mask_rate(self.config.data),
        )
