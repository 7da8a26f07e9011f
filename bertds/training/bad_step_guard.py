"""What happens when a batch's loss or gradient goes wrong: skip it, say which samples, or stop.

A non-finite gradient never reaches the weights: the engine makes no update. The spike rule
(``guard.spike_sigmas``) makes none either when the gradient norm is far over those of the last
``guard.spike_window`` updates. The norms of skipped steps do not enter the window, and the window
is saved with each checkpoint, so a continued run decides as an unbroken one does.

While all goes well nothing here reads a tensor's value, but for the norm where the spike rule is
on. After a bad step the ranks exchange the losses of their micro batches.
"""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import numpy as np
import torch

from bertds.checkpoint.train_state import TrainState
from bertds.config.recipe import GuardConfig
from bertds.engine.interface import ModelOutput, TrainingEngine
from bertds.errors import BertdsError
from bertds.system.logs import log

SHOWN_SAMPLES = 64
"""A message lists at most this number of samples of the bad micro batch."""
FEWEST_NORMS = 20
"""The spike rule waits until it has seen this number of updates (or its whole window)."""
SMALLEST_DEVIATION = 0.01
"""Share of the mean that the standard deviation is taken to be at least: no spike from noise."""

Losses = tuple[torch.Tensor, torch.Tensor, int, int]
"""Masked-LM and next-sentence loss sums of a micro batch, its masked tokens and its rows."""


class Guard:
    """Judges each step of one run. Its memory is in the training state.

    Args:
        config: the rules.
        engine: for the norm and for what the ranks exchange.
    """

    def __init__(self, config: GuardConfig, engine: TrainingEngine) -> None:
        self.config = config
        self.engine = engine
        self._losses: list[Losses] = []

    def watch(self, output: ModelOutput, masked: int, rows: int) -> None:
        """Remember one micro batch's losses until the step is judged; does not read them."""
        self._losses.append((output.mlm_loss_sum, output.nsp_loss_sum, masked, rows))

    def norm_limit(self, state: TrainState) -> float:
        """Return the gradient norm over which the next update is held back; inf = no limit."""
        config, norms = self.config, state.recent_norms
        if config.spike_sigmas <= 0 or len(norms) < min(FEWEST_NORMS, config.spike_window):
            return math.inf
        mean = fmean(norms)
        return mean + config.spike_sigmas * max(pstdev(norms, mean), SMALLEST_DEVIATION * mean)

    def judge(self, state: TrainState, samples: np.ndarray, applied: bool, limit: float) -> None:
        """Take note of a step that has just been counted. Collective when it made no update.

        Args:
            state: its ``step`` is the step judged.
            samples: int64 [rows, 2]: epoch and number of this rank's samples in the step.
            applied: whether the weights were updated.
            limit: what :meth:`norm_limit` returned for the step.

        Raises:
            BertdsError: on all ranks, after ``guard.max_bad_steps`` bad steps in a row.
        """
        losses, self._losses = self._losses, []
        if applied:
            state.skipped_in_a_row = 0
            if self.config.spike_sigmas > 0:
                state.recent_norms.append(float(self.engine.gradient_norm() or 0.0))
                del state.recent_norms[: -self.config.spike_window]
            return
        state.skipped_steps += 1
        norm = self.engine.gradient_norm()
        spike = norm is not None and math.isfinite(norm)
        if not spike and self.engine.searching_loss_scale():
            # Overflows are how the search goes; what has a cause in the data comes again.
            log.info("step %d: loss scale lowered to %g", state.step, self.engine.loss_scale())
            return
        state.skipped_in_a_row += 1
        what = (
            f"gradient norm {norm:.4g} exceeds {limit:.4g}, {self.config.spike_sigmas:g} standard "
            f"deviations above the mean of the last {len(state.recent_norms)}"
            if spike
            else "non-finite gradient"
        )
        where = self._find(losses, samples)
        if state.skipped_in_a_row >= self.config.max_bad_steps:
            raise BertdsError(
                f"{state.skipped_in_a_row} consecutive steps made no update "
                f"(guard.max_bad_steps); the last one is step {state.step}: {what}; {where}. The "
                "last checkpoint is unaffected. Look at these samples with `bertds inspect`, or "
                "lower the learning rate"
            )
        if self.engine.rank == 0:
            log.warning("step %d made no update: %s; %s", state.step, what, where)

    def _find(self, losses: list[Losses], samples: np.ndarray) -> str:
        """Return which micro batches are to blame, with rank and sample numbers. Collective."""
        mine, first = [], 0
        for number, (mlm, nsp, masked, rows) in enumerate(losses):
            loss = float(mlm) / max(masked, 1) + float(nsp) / max(rows, 1)
            names = [f"{epoch}:{sample}" for epoch, sample in samples[first : first + rows]]
            mine.append((loss, number, names))
            first += rows
        every = [
            (loss, rank, number, names)
            for rank, found in enumerate(self.engine.gather_objects(mine))
            for loss, number, names in found
        ]
        bad = [entry for entry in every if not math.isfinite(entry[0])]
        if bad:
            return "; ".join(_describe(*entry) for entry in bad[:4]) + (
                f"; and {len(bad) - 4} more micro batches" if len(bad) > 4 else ""
            )
        return "every loss is finite; the highest is " + _describe(*max(every))


def _describe(loss: float, rank: int, number: int, names: list[str]) -> str:
    shown = " ".join(names[:SHOWN_SAMPLES]) + (" ..." if len(names) > SHOWN_SAMPLES else "")
    return f"loss {loss:.4g} on rank {rank}, micro batch {number}, samples epoch:number {shown}"
