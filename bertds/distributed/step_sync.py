"""The ranks' exchange in each step: two small all-reduces.

The first, at the beginning, sums the masked positions and real tokens of the step's samples, and
rank 0's clock. The loss is divided by the masked positions of the whole global batch, so the result
depends on neither micro batch nor world size. The second, before the update, counts the ranks that
want to stop, so a request that arrives during the step ends the run after this step. On a GPU both
are read after the update, which waits for the gradient norm anyway.
"""

from __future__ import annotations

import torch

from bertds.data.batches import StepBatch
from bertds.distributed.device_timer import DeviceClock
from bertds.distributed.ranks import Ranks
from bertds.distributed.stop_requests import StopRequests


class _Sums:
    """Sums in transfer to the host."""

    def __init__(self, sums: torch.Tensor) -> None:
        self._host = sums
        self._event: torch.cuda.Event | None = None
        if sums.device.type == "cuda":
            self._host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._host.copy_(sums, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> list[float]:
        """Wait until they have arrived, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class Agreement:
    """The exchange of one run.

    Args:
        engine: sums numbers over the ranks.
        watch: this rank's stop requests.
    """

    def __init__(self, engine: Ranks, watch: StopRequests) -> None:
        self.engine = engine
        self.watch = watch
        self.waiting = DeviceClock(engine.device)
        """Times the second exchange, in which a fast rank waits for a slow one."""
        self._counts: _Sums | None = None
        self._wishes: _Sums | None = None
        self._stop = False
        self.batches_ready = False
        """Whether every rank had its next batch at the last exchange."""
        self.main_hours = 0.0
        self.hours = 0.0
        self.tokens = 0
        self.masked = 0
        """Number of masked tokens in the steps of this process, on all ranks."""

    def begin(self, batch: StepBatch) -> dict[str, torch.Tensor | float]:
        """Exchange this step's counts.

        Args:
            batch: this rank's part of the step.

        Returns:
            ``mlm_scale`` and ``nsp_scale``: the factors of the loss sums with which the engine's
            averaging over micro batches and ranks gives the mean over the global batch.
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
        """Exchange stop requests. Call it before the update.

        Args:
            has_batch: whether this rank has its next batch; see :attr:`batches_ready`.
        """
        wish = 1.0 if self.watch.reason() else 0.0
        waiting = 0.0 if has_batch else 1.0
        with self.waiting.timed():
            sums = self.engine.global_sums([wish, waiting])
        self._wishes = _Sums(sums)

    def read(self) -> None:
        """Read the results of this step's exchanges. Call it after the update."""
        if self._counts is not None:
            masked, tokens, self.hours = self._counts.values()
            self.tokens += int(tokens)
            self.masked += int(masked)
        if self._wishes is not None:
            wishes, waiting = self._wishes.values()
            self._stop = self._stop or wishes > 0
            self.batches_ready = waiting == 0
        self._counts = self._wishes = None

    def stop(self, reason: str) -> None:
        """Stop for a reason that all ranks know; every rank must call it."""
        self._stop = True
        self.watch.wish(reason)

    def reason_to_stop(self) -> str:
        """Return why all ranks stop after this step, or ""."""
        if not self._stop:
            return ""
        return self.watch.reason() or "another rank was asked to stop"
