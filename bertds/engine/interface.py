"""The engine as the training loop's collaborators see it: one protocol.

:class:`bertds.engine.deepspeed_engine.Engine` implements it. Metrics, checkpoints, validation and
the bad-step guard are written against this protocol. They never see DeepSpeed, and tests can use a
small stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from bertds.config.batch_plan import BatchPlan
from bertds.data.batches import MicroBatch
from bertds.distributed.ranks import Ranks
from bertds.engine.state_pieces import Piece, Reader


class ModelOutput(Protocol):
    """Scalars of one micro batch, on the device. Every model returns them as a named tuple."""

    @property
    def mlm_loss_sum(self) -> torch.Tensor:
        """float32: cross-entropy summed over masked tokens."""

    @property
    def nsp_loss_sum(self) -> torch.Tensor:
        """float32: cross-entropy summed over rows; 0 without next-sentence labels."""

    @property
    def mlm_correct(self) -> torch.Tensor:
        """int64: number of masked tokens predicted correctly."""

    @property
    def nsp_correct(self) -> torch.Tensor:
        """int64: number of rows whose next-sentence label was predicted correctly."""

    @property
    def predictions(self) -> torch.Tensor | None:
        """int64 [M]: the most likely token ids, if requested; otherwise None."""


class SavableEngine(Ranks, Protocol):
    """The part of the engine that saving and loading a checkpoint needs."""

    def pieces(self) -> list[Piece]:
        """Return the pieces of weights and moments that this rank owns."""

    def load_pieces(
        self, read: Reader, *, optimizer_steps: int, moments: bool, averaged: bool = ...
    ) -> None:
        """Set weights, moments and the average from saved values, by name."""

    def optimizer_steps(self) -> int:
        """Return the number of updates that the moments have seen."""

    def extra_state(self) -> dict[str, float]:
        """Return the loss scaler's numbers (fp16 only)."""

    def load_extra_state(self, state: Mapping[str, float]) -> None:
        """Restore the loss scaler's numbers."""


class TrainingEngine(SavableEngine, Protocol):
    """The part of the engine that a training step, its metrics and its validation need."""

    @property
    def batch(self) -> BatchPlan:
        """How a step's samples are divided into micro batches."""

    def forward_backward(
        self,
        micro_batch: MicroBatch,
        *,
        mlm_scale: float | torch.Tensor,
        nsp_scale: float | torch.Tensor,
    ) -> ModelOutput:
        """Run a micro batch through the model and add its gradient."""

    def eval_forward(self, micro_batch: MicroBatch, *, predict: bool = ...) -> ModelOutput:
        """Run a micro batch through the model without dropout and without gradients."""

    def step(self, norm_limit: float = ...) -> bool:
        """Update the weights; return whether an update was made."""

    def gradient_norm(self) -> float | None:
        """Return the last step's global gradient norm before clipping."""

    def loss_scale(self) -> float | None:
        """Return the current loss scale; None without fp16."""

    def searching_loss_scale(self) -> bool:
        """Return whether a lower loss scale may avoid the last step's overflow (fp16 only)."""

    def trust_ratios(self) -> dict[str, tuple[float, float, float]]:
        """Return LAMB's (lowest, median, highest) trust ratio per group; empty without LAMB."""
