"""The rows that the loader gives from a place, as plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.data.loader import BatchLoader, open_source


def config(path: object, cache: Path, **others: object) -> DataConfig:
    return DataConfig(
        path=str(path),
        cache_dir=str(cache),
        sequence_length=32,
        max_predictions_per_sequence=5,
        **{"fetch_timeout_minutes": 0.5, **others},
    )


def steps(data: DataConfig, count: int, rank: int = 0, world: int = 1) -> list[list[np.ndarray]]:
    """The contents of the first steps, as plain arrays."""
    plan = BatchPlan(global_batch_size=64, micro_batch_size=16, world_size=world)
    found = []
    with BatchLoader(open_source(data, 1), data, plan, rank, seed=1) as loader:
        for _ in range(count):
            step = next(loader)
            tensors = [
                getattr(batch, name).numpy()
                for batch in step.micro_batches
                for name in ("input_ids", "cu_seqlens", "masked_lm_positions", "masked_lm_ids")
            ]
            found.append([step.samples, *tensors])
    return found


def assert_equal(one: list, two: list) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
