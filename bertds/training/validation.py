"""Scores the model on held-out documents: masked-LM and next-sentence loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch
from bertds.data.loader import validation_batches
from bertds.data.sources.base import Source
from bertds.engine.interface import TrainingEngine
from bertds.monitor.scoring import score
from bertds.pretrained.evaluate import majority_share, unigram_entropy
from bertds.training.prompts import Prompts
from bertds.training.store_waits import together


class _Kept(NamedTuple):
    """Rows that were read once from a store."""

    own: list[MicroBatch]
    filler: list[MicroBatch]


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
        self._baselines: dict[str, float] | None = None
        self._prompts = Prompts.of(source, config)
        self._kept: _Kept | None = None
        self.micro_batch = config.validation.micro_batch_size or engine.batch.micro_batch_size

    def prepare(self, on_round: Callable[[], None], stop: Callable[[], str]) -> None:
        """Read rows from a store in advance: no rank may wait in a forward pass. Collective.

        The rows are kept, since every validation uses the same ones.

        Args:
            on_round: see :func:`together`.
            stop: see :func:`together`.

        Raises:
            StoreError: on every rank, if a store did not answer in time, or a rank wanted to stop.
        """
        if self.source.may_stall and self._kept is None:
            self._kept = together(self.engine, self._keep, on_round, stop)

    def _keep(self) -> _Kept:
        engine = self.engine
        own = list(self._read(engine.rank, engine.world_size))
        # One batch of rank 0's rows is enough for a rank that has none of its own.
        filler = list(islice(self._read(0, 1), 1))
        if engine.rank == 0:
            self._count_text()
        return _Kept(own, filler)

    def _count_text(self) -> dict[str, float]:
        """Return the baselines of the text, computed once; {} if its token counts are unknown."""
        if self._baselines is None:
            counts = self.source.token_counts()
            self._baselines = {}
            if counts is not None:
                found = (unigram_entropy(counts), majority_share(counts))
                names = ("unigram_entropy", "mlm_majority")
                self._baselines = {k: float(f"{v:.8g}") for k, v in zip(names, found)}
        return self._baselines

    def score(self) -> dict[str, float]:
        """Return losses and accuracies with their baselines; see :func:`score`. Collective.

        Rank 0 adds ``unigram_entropy`` and ``mlm_majority`` if the token counts are known: the
        masked-LM loss of a model that knows only the token frequencies, and the accuracy of always
        predicting the most frequent token.
        """
        config, engine, kept = self.config, self.engine, self._kept
        rows = self.source.with_seed(config.run.seed).samples_in_epoch(0)
        rows = min(rows, config.validation.max_samples or rows)
        # All ranks make as many forward passes as the one with the most rows: ZeRO-3 gathers
        # weights in each, which is collective. Ranks with fewer rows pass `filler`, which is not
        # counted.
        most_rows = -(-rows // engine.world_size)
        scores = score(
            kept.own if kept else self._read(engine.rank, engine.world_size),
            lambda batch: engine.eval_forward(batch.to(engine.device)),
            engine.global_sums,
            config.model.next_sentence and self.source.has_pairs,
            passes=-(-most_rows // self.micro_batch),
            filler=lambda: kept.filler if kept else self._read(0, 1),
        )
        if engine.rank == 0:  # only rank 0 writes the metrics
            scores |= self._count_text()
        return scores

    def prompts(self) -> list[dict[str, str]]:
        """Return the fixed prompts with the model's current predictions. Collective."""
        if self._prompts is None:
            return []
        output = self.engine.eval_forward(self._prompts.batch.to(self.engine.device), predict=True)
        assert output.predictions is not None
        return self._prompts.lines(output.predictions)

    def _read(self, rank: int, world_size: int) -> Iterable[MicroBatch]:
        return validation_batches(
            self.source,
            self.micro_batch,
            rank,
            world_size,
            seed=self.config.run.seed,
            max_samples=self.config.validation.max_samples,
            mask_rate=held_out_mask_rate(self.config.data),
        )
