"""Scoring on held-out documents: masked-LM loss and accuracy, next-sentence accuracy, apart."""

from __future__ import annotations

from collections.abc import Iterable

from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch
from bertds.data.loader import validation_batches
from bertds.data.sources.base import Source
from bertds.engine.interface import TrainingEngine
from bertds.monitor.scoring import score


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
        self.micro_batch = config.validation.micro_batch_size or engine.batch.micro_batch_size

    def score(self) -> dict[str, float]:
        """Return losses and accuracies; see :func:`score`. Collective."""
        config, engine = self.config, self.engine
        rows = self.source.with_seed(config.run.seed).samples_in_epoch(0)
        rows = min(rows, config.validation.max_samples or rows)
        most_rows = -(-rows // engine.world_size)
        return score(
            self._batches(engine.rank, engine.world_size),
            lambda batch: engine.eval_forward(batch.to(engine.device)),
            engine.global_sums,
            config.model.next_sentence,
            passes=-(-most_rows // self.micro_batch),
            filler=lambda: self._batches(0, 1),
        )

    def _batches(self, rank: int, world_size: int) -> Iterable[MicroBatch]:
        return validation_batches(
            self.source,
            self.config.data,
            self.micro_batch,
            rank,
            world_size,
            seed=self.config.run.seed,
            max_samples=self.config.validation.max_samples,
        )
