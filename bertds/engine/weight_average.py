"""An exponential moving average of the weights, divided over the ranks as ZeRO divides the moments.

    a <- d a + (1 - d) w     after every update, on each rank's own master weights, in float32

There is no communication: the rank that updates an element also averages it. For evaluation the
average is swapped with the weights, and swapped back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertds.engine.zero_layout import DeepSpeedObject, Layout, refresh_weights


def decay_at(decay: float, updates: int) -> float:
    """Return the decay of an update, as TensorFlow's ExponentialMovingAverage does.

    Args:
        decay: the decay of late updates.
        updates: number of updates before this one.
    """
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """The average of one rank's master weights; it starts from their current values.

    Args:
        layout: where the masters are.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.vectors = [partition.flat().clone() for partition in layout.partitions]
        """float32, one per partition, with the layout of its master weights."""

    @torch.no_grad()
    def begin(self) -> None:
        """Set the average to the current weights."""
        for vector, partition in zip(self.vectors, self._layout.partitions, strict=True):
            vector.copy_(partition.flat())

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the weights by 1 - ``decay``."""
        for vector, partition in zip(self.vectors, self._layout.partitions, strict=True):
            vector.lerp_(partition.flat(), 1.0 - decay)

    @contextmanager
    def in_place(self, engine: DeepSpeedObject) -> Iterator[None]:
        """Use the average as the weights while the context is open. Collective."""
        self._swap(engine)
        try:
            yield
        finally:
            self._swap(engine)

    @torch.no_grad()
    def _swap(self, engine: DeepSpeedObject) -> None:
        for vector, partition in zip(self.vectors, self._layout.partitions, strict=True):
            weights = partition.flat()
            kept = weights.clone()
            weights.copy_(vector)
            vector.copy_(kept)
        refresh_weights(engine, self._layout)
