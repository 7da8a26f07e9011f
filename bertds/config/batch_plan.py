"""Divides the rows of one step over processes and micro batches."""

from __future__ import annotations

from dataclasses import dataclass

from bertds.display.words import count
from bertds.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The division of one optimizer step's samples.

    global batch = micro batch x gradient accumulation steps x world size.

    Raises:
        ConfigError: a number is below 1, or the global batch is not such a product.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "micro_batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        per_forward = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_forward == 0:
            return
        # The message suggests the nearest batch sizes, and the nearest micro batch for this batch
        # size.
        below = self.global_batch_size // per_forward * per_forward
        near = [str(batch) for batch in (below, below + per_forward) if batch > 0]
        micro = [
            m
            for m in range(1, self.global_batch_size + 1)
            if self.global_batch_size % (m * self.world_size) == 0
        ]
        hint = ""
        if micro:
            nearest = min(micro, key=lambda m: (abs(m - self.micro_batch_size), m))
            hint = f", or train_micro_batch_size_per_gpu={nearest}"
        raise ConfigError(
            f"train_batch_size={self.global_batch_size} is not a multiple of "
            f"train_micro_batch_size_per_gpu={self.micro_batch_size} x "
            f"{count(self.world_size, 'process', 'processes')}; the nearest multiples are: "
            f"train_batch_size={' or '.join(near)}{hint}"
        )

    @property
    def gradient_accumulation_steps(self) -> int:
        """Number of micro batches of a rank in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)
