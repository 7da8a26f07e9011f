"""What the ranks exchange in each step, in two small all-reduces.

At its beginning: masked positions and real tokens of the step's samples, and rank 0's clock. The
loss is divided by the whole global batch's count of masked positions, so the result depends on
neither micro batch nor world size. Before the update: how many ranks wish to stop; so a wish that
comes while the step is under way ends the run after this step. On a GPU both are read after the
update, which has waited for the gradient norm, so that nothing else waits for the device.
"""

from __future__ import annotations

import torch

from bertds.data.batches import StepBatch
from bertds.distributed.device_timer import DeviceClock
from bertds.distributed.ranks import Ranks
from bertds.distributed.stop_requests import StopRequests


class _Sums:
    """Sums on their way to the host."""

    def __init__(self, sums: torch.Tensor) -> None:
        self._host = sums
        self._event: torch.cuda.Event | None = None
        if sums.device.type == "cuda":
            self._host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._host.copy_(sums, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> list[float]:
        """Wait until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class Agreement:
    """One run's exchange.

    Args:
        engine: adds numbers up over the ranks.
        watch: this rank's wish to stop.
    """

    def __init__(self, engine: Ranks, watch: StopRequests) -> None:
        self.engine = engine
        self.watch = watch
        self.waiting = DeviceClock(engine.device)
        """Times the exchange before the update, where a fast rank waits for a slow one."""
        self._counts: _Sums | None = None
        self._wishes: _Sums | None = None
        self._stop = False
        self.batches_ready = False
        """Whether every rank had its next batch when it was last asked."""
        self.main_hours = 0.0
        self.hours = 0.0
        self.tokens = 0

    def begin(self, batch: StepBatch) -> dict[str, torch.Tensor | float]:
        """Exchange this step's counts.

        Args:
            batch: this rank's part of the step.

        Returns:
            ``mlm_scale`` and ``nsp_scale``: what the engine multiplies loss sums with, so that
            its averaging over micro batches and ranks gives the mean over the global batch.
        """
        hours = self.main_hours if self.engine.rank == 0 else 0.0
        sums = self.engine.global_sums(
            [float(batch.masked_tokens), float(batch.real_tokens), hours]
        )
        self._counts = _Sums(sums)
        plan = batch.plan
        forwards = plan.gradient_accumulation_steps * plan.world_size
        return {
            "mlm_scale": forwards / sums[0].clamp_min(1.0),
            "nsp_scale": forwards / plan.global_batch_size,
        }

    def ask(self, has_batch: bool = True) -> None:
        """Exchange the wishes to stop; call it before the update.

        Args:
            has_batch: whether this rank's next batch is there; see :attr:`batches_ready`.
        """
        wish = 1.0 if self.watch.reason() else 0.0
        waiting = 0.0 if has_batch else 1.0
        with self.waiting.timed():
            sums = self.engine.global_sums([wish, waiting])
        self._wishes = _Sums(sums)

    def read(self) -> None:
        """Take in what this step exchanged; call it after the update."""
        if self._counts is not None:
            _, tokens, self.hours = self._counts.values()
            self.tokens += int(tokens)
        if self._wishes is not None:
            wishes, waiting = self._wishes.values()
            self._stop = self._stop or wishes > 0
            self.batches_ready = waiting == 0
        self._counts = self._wishes = None

    def stop(self, reason: str) -> None:
        """Stop after all: every rank calls it, for a reason that they share."""
        self._stop = True
        self.watch.wish(reason)

    def reason_to_stop(self) -> str:
        """Return why all ranks stop after this step, or ""."""
        if not self._stop:
            return ""
        return self.watch.reason() or "another rank was asked to stop"
