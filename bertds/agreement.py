"""What the ranks tell each other once a step, in one small all-reduce.

The sum over the ranks of: masked positions and real tokens of this step's samples, how many ranks
wish to stop, and rank 0's clock. The loss is divided by the whole global batch's count of masked
positions, so the result depends on neither micro batch nor world size. On a GPU the sums are read
one step late, so that no step waits for the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from bertds.config import BatchPlan
from bertds.runtime import StopWatch


class Agreement:
    """One run's exchange.

    Args:
        engine: for ``global_sums`` and ``device``.
        plan: for the loss scales.
        watch: this rank's wish to stop.
    """

    def __init__(self, engine: Any, plan: BatchPlan, watch: StopWatch) -> None:
        self.engine = engine
        self.plan = plan
        self.watch = watch
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._stop = False
        self.main_hours = 0.0
        self.hours = 0.0
        self.tokens = 0

    def begin(self, batch: Any) -> dict[str, torch.Tensor | float]:
        """Exchange this step's counts.

        Args:
            batch: this rank's part of the step, with ``masked_tokens`` and ``real_tokens``.

        Returns:
            ``mlm_scale`` and ``nsp_scale``: what the engine multiplies loss sums with, so that
            its averaging over micro batches and ranks gives the mean over the global batch.
        """
        wish = 1.0 if self.watch.reason() else 0.0
        hours = self.main_hours if self.engine.rank == 0 else 0.0
        sums = self.engine.global_sums(
            [float(batch.masked_tokens), float(batch.real_tokens), wish, hours]
        )
        if sums.device.type == "cuda":
            host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            host.copy_(sums, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((host, event))
        else:
            self._pending.append((sums, None))
        forwards = self.plan.gradient_accumulation_steps * self.plan.world_size
        return {
            "mlm_scale": forwards / sums[0].clamp_min(1.0),
            "nsp_scale": forwards / self.plan.global_batch_size,
        }

    def read(self, *, everything: bool = False) -> None:
        """Take in the sums that have arrived: all but the newest on a GPU, unless told to wait."""
        while self._pending:
            sums, event = self._pending[0]
            if event is not None:
                if len(self._pending) == 1 and not everything:
                    return
                event.synchronize()
            self._pending.popleft()
            _, tokens, wishes, hours = sums.tolist()
            self.tokens += int(tokens)
            self._stop = self._stop or wishes > 0
            self.hours = hours

    def reason_to_stop(self) -> str:
        """Return why all ranks stop after this step, or ""."""
        self.read()
        if not self._stop:
            return ""
        return self.watch.reason() or "another rank was asked to stop"
