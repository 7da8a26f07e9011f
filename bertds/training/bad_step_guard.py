"""Handles a batch whose loss or gradient is bad: skips it, names its samples, or stops the run.

A non-finite gradient never reaches the weights: the engine makes no update. The spike rule
(``guard.spike_sigmas``) also makes none when the gradient norm is far above those of the last
``guard.spike_window`` updates. The norms of skipped steps do not enter the window. The window is
saved with each checkpoint, so a resumed run decides as an uninterrupted one does.

While steps are good, no tensor's value is read here, except the norm if the spike rule is on.
After a bad step the ranks exchange the losses of their micro batches.
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
"""The maximum number of samples of a bad micro batch that a message lists."""
FEWEST_NORMS = 20
"""The spike rule starts after this number of updates, or after its whole window if that is less."""
SMALLEST_DEVIATION = 0.01
"""The smallest standard deviation used, as a fraction of the mean, so that noise is no spike."""

Losses = tuple[torch.Tensor, torch.Tensor, int, int]
"""Masked-LM and next-sentence loss sums of a micro batch, its masked tokens and its rows."""


class Guard:
    """Judges each step of one run. What it remembers is part of the training state.

    Args:
        config: the rules.
        engine: for the norm, and to exchange losses between ranks.
    """

    def __init__(self, config: GuardConfig, engine: TrainingEngine) -> None:
        self.config = config
        self.engine = engine
        self._losses: list[Losses] = []

    def watch(self, output: ModelOutput, masked: int, rows: int) -> None:
        """Keep one micro batch's losses until the step is judged, without reading their values."""
        self._losses.append((output.mlm_loss_sum, output.nsp_loss_sum, masked, rows))

    def norm_limit(self, state: TrainState) -> float:
        """Return the gradient norm above which the next update is skipped; inf = no limit."""
        config, norms = self.config, state.recent_norms
        if config.spike_sigmas <= 0 or len(norms) < min(FEWEST_NORMS, config.spike_window):
            return math.inf
        mean = fmean(norms)
        return mean + config.spike_sigmas * max(pstdev(norms, mean), SMALLEST_DEVIATION * mean)

    def judge(self, state: TrainState, samples: np.ndarray, applied: bool, limit: float) -> None:
        """Record the step that was just counted. Collective if it made no update.

        Args:
            state: its ``step`` is the step judged.
            samples: int64 [rows, 2]: epoch and number of this rank's samples in the step.
            applied: whether the weights were updated.
            limit: what :meth:`norm_limit` returned for the step.

        Raises:
            BertdsError: on all ranks, after ``guard.max_bad_steps`` bad steps in a row.
        """
        losses, self._losses = self._losses, []
        # A good step: only the norm is recorded, and only if the spike rule needs it.
        if applied:
            state.skipped_in_a_row = 0
            if self.config.spike_sigmas > 0:
                state.recent_norms.append(float(self.engine.gradient_norm() or 0.0))
                del state.recent_norms[: -self.config.spike_window]
            return
        state.skipped_steps += 1
        # No update. It was a spike if the norm is finite, otherwise an overflow or a NaN.
        norm = self.engine.gradient_norm()
        spike = norm is not None and math.isfinite(norm)
        if not spike and self.engine.searching_loss_scale():
            # Overflows are part of the search for a loss scale. A fault in the data comes again.
            scale = self.engine.loss_scale()
            log.info("step %d made no update: overflow; the loss scale is %g", state.step, scale)
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
        """Return the micro batches at fault, with rank and sample numbers. Collective."""
        # The mean loss of each micro batch of this rank, with the names of its samples.
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
        # Non-finite losses are the cause. Otherwise only the gradient was bad: name the highest
        # loss.
        bad = [entry for entry in every if not math.isfinite(entry[0])]
        if bad:
            return "; ".join(_describe(*entry) for entry in bad[:4]) + (
                f"; and {len(bad) - 4} more micro batches" if len(bad) > 4 else ""
            )
        return "every loss is finite; the highest is " + _describe(*max(every))


def _describe(loss: float, rank: int, number: int, names: list[str]) -> str:
    shown = " ".join(names[:SHOWN_SAMPLES]) + (" ..." if len(names) > SHOWN_SAMPLES else "")
    return f"loss {loss:.4g} on rank {rank}, micro batch {number}, samples epoch:number {shown}"
