"""Collects the metrics of a run: sums on the device, and JSON lines every few steps.

Nothing here reads a tensor's value between two lines. Losses are summed on the device, and fetched
and summed over the ranks when a line is due. A resumed run first removes the lines after its
checkpoint's step, so that no step occurs twice.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from bertds.checkpoint.train_state import TrainState
from bertds.distributed.device_timer import DeviceClock
from bertds.engine.interface import ModelOutput, TrainingEngine
from bertds.monitor.metrics_file import FILE, cut_after
from bertds.monitor.mfu import Meter
from bertds.monitor.rank_speed import RankSpeed
from bertds.system.atomic_files import append_line
from bertds.system.fault_points import reached
from bertds.system.memory import peak_memory_gib


class RunningSums:
    """Adds up losses and counts of forward passes without waiting for the device."""

    NAMES = ("mlm_loss", "nsp_loss", "mlm_correct", "nsp_correct", "masked", "rows")

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None

    def add(self, output: ModelOutput, masked: int, rows: int) -> None:
        """Add one forward pass; it is left out, with its counts, if its loss is not finite.

        Args:
            output: has ``mlm_loss_sum``, ``nsp_loss_sum``, ``mlm_correct``, ``nsp_correct``.
            masked: number of masked positions in it.
            rows: number of rows in it.
        """
        parts = (output.mlm_loss_sum, output.nsp_loss_sum, output.mlm_correct, output.nsp_correct)
        measured = [part.detach().to(torch.float64) for part in parts]
        one = torch.ones_like(measured[0])
        values = torch.stack([*measured, one * masked, one * rows])
        # A pass with a value that is not finite adds zeros. The device decides, so the host need
        # not wait.
        values = torch.where(values.isfinite().all(), values, 0.0)
        self._sums = values if self._sums is None else self._sums.add_(values)

    def take(self) -> list[float]:
        """Return the sums in the order of NAMES, and reset them. Waits for the device."""
        values = [0.0] * len(self.NAMES) if self._sums is None else self._sums.tolist()
        self._sums = None
        return values


def means(sums: list[float], next_sentence: bool) -> dict[str, float]:
    """Turn global sums into mean losses and accuracies."""
    values = dict(zip(RunningSums.NAMES, sums))
    masked, rows = max(values["masked"], 1.0), max(values["rows"], 1.0)
    result = {"mlm_loss": values["mlm_loss"] / masked}
    accuracy = {"mlm_accuracy": values["mlm_correct"] / masked}
    if next_sentence:
        result["nsp_loss"] = values["nsp_loss"] / rows
        accuracy["nsp_accuracy"] = values["nsp_correct"] / rows
    return {"loss": sum(result.values()), **result, **accuracy}


class Listener(Protocol):
    """An object that shows or stores metric lines (progress display, W&B, TensorBoard)."""

    def line(self, values: dict[str, Any]) -> None:
        """Take one metric line."""


class Metrics:
    """Collects, writes and passes on the metrics of one run.

    Args:
        run_dir: the folder of ``metrics.jsonl``.
        every_steps: number of steps per train line.
        next_sentence: whether the next-sentence head is trained: the rows have labels.
        engine: for sums over the ranks, gradient norm, loss scale, trust ratios.
        listeners: also receive each line (main process only).
        meter: converts tokens and seconds to operations per second and MFU.
        rank_speed: compares the ranks; None with a single one.
    """

    def __init__(
        self,
        run_dir: Path,
        every_steps: int,
        next_sentence: bool,
        engine: TrainingEngine,
        listeners: list[Listener],
        meter: Meter | None = None,
        rank_speed: RankSpeed | None = None,
    ) -> None:
        self.path = Path(run_dir) / FILE
        self.every_steps = every_steps
        self.next_sentence = next_sentence
        self.engine = engine
        self.listeners = listeners
        self.meter = meter
        self.rank_speed = rank_speed
        self.is_main = engine.rank == 0
        self.sums = RunningSums()
        self.optimizer = DeviceClock(engine.device)
        """Times the weight updates, including the reduction of the gradients."""
        # Global sums of an unfinished window, which checkpoints store.
        self._carried = [0.0] * len(RunningSums.NAMES)
        self.masked = 0
        """Number of masked tokens in the steps of this process, on all ranks."""
        self._clock = time.perf_counter()
        self._tokens = 0
        self._masked = 0
        self._samples = 0
        self._stalled = 0.0

    def start(self, state: TrainState) -> None:
        """Prepare to continue after ``state.step``: remove later lines, start the clock."""
        if self.is_main:
            cut_after(self.path, state.step, state.validated_step)
        self._clock = time.perf_counter()
        self._tokens = state.tokens
        self._samples = state.samples

    def add(self, output: ModelOutput, masked: int, rows: int) -> None:
        """Add one micro batch's forward pass."""
        self.sums.add(output, masked, rows)

    def window(self) -> list[float]:
        """Return the unfinished window's global sums, for a checkpoint. Collective."""
        totals = self.engine.global_sums(self.sums.take()).tolist()
        self._carried = [a + b for a, b in zip(self._carried, totals)]
        return list(self._carried)

    def restore_window(self, sums: list[float]) -> None:
        """Continue an unfinished window; an empty list starts a new one."""
        self._carried = list(sums) or [0.0] * len(RunningSums.NAMES)

    def write_if_due(
        self, state: TrainState, learning_rate: float, stall_seconds: float, *, last: bool
    ) -> None:
        """Write a train line if the step is due, or if it is the run's last. Collective."""
        if state.step % self.every_steps and not last:
            return
        # The window ends here: sums over all ranks since the last line.
        totals = self.window()
        self._carried = [0.0] * len(RunningSums.NAMES)
        now = time.perf_counter()
        seconds, tokens = now - self._clock, state.tokens - self._tokens
        measured = totals[RunningSums.NAMES.index("masked")] > 0  # else no loss was finite
        values: dict[str, Any] = {
            "step": state.step,
            **{
                key: _short(value) if measured else None
                for key, value in means(totals, self.next_sentence).items()
            },
            "lr": learning_rate,
            "grad_norm": _short(self.engine.gradient_norm()),
            "samples": state.samples,
            "tokens": state.tokens,
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "seconds": round(seconds, 4),
            "stall_seconds": round(stall_seconds - self._stalled, 4),
            "optimizer_seconds": round(self.optimizer.take(), 4),
            "skipped_steps": state.skipped_steps,
            "restarts": state.restarts,
            "memory_gib": peak_memory_gib(),
        }
        # Values that depend on the model, the number of ranks or the optimizer.
        if self.meter is not None:
            masked, samples = self.masked - self._masked, state.samples - self._samples
            values.update(self.meter.read(tokens, masked, samples, seconds))
        if self.rank_speed is not None:
            values.update(self.rank_speed.line())
        scale = self.engine.loss_scale()
        if scale is not None:
            values["loss_scale"] = scale
        ratios = self.engine.trust_ratios()
        if ratios:
            values["trust_ratio"] = {
                group: [_short(number) for number in triple] for group, triple in ratios.items()
            }
        # The next window begins.
        self._clock, self._stalled = now, stall_seconds
        self._tokens, self._masked, self._samples = state.tokens, self.masked, state.samples
        self.write(values)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line and pass it on (main process only)."""
        reached("metrics.write")
        if not self.is_main:
            return
        append_line(self.path, json.dumps(values))
        for listener in self.listeners:
            listener.line(values)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of a ``with`` block (validation, saving) from the throughput."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began


def _short(value: float | None) -> float | None:
    """Round to 8 significant digits: the precision of float32, without noise of summation.

    A value that is not finite becomes None, because JSON has no NaN.
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.8g}")
