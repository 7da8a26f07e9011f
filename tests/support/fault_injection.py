"""Faults that are planted in a training process: deaths at named points, bad rows, bad gradients.

A plan is a JSON-able dictionary; :func:`plant` puts it into this process.

```text
die     [point, n, signal]   send the signal to this process at the n-th passing of a point
nan     [[epoch, number]]    the loss of every micro batch with one of these samples is NaN
overflow [steps]             the loss of these steps is finite, the gradient is not
spike   {step: factor}       the gradient of this step is so many times as large
slow    seconds              every step takes so much longer
hog     seconds              the first step holds Python's lock for so long
stop    step                 SIGUSR1 comes while this step is under way, and in each later one
insist  n                    so many Ctrl-C arrive while the run is taken down
error   step                 this rank raises an error of its own in this step
```
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from typing import Any

import numpy as np
import torch

from bertds.data.batches import MicroBatch
from bertds.data.loader import StepBatch
from bertds.errors import DataError
from bertds.system import fault_points
from bertds.system.fault_points import inject

POINTS = tuple(
    name for name in fault_points.POINTS
    if name.startswith(("checkpoint.", "engine.", "run.continue", "metrics."))
    and name not in ("engine.seed", "engine.output")
)  # fmt: skip
"""Where a run may die; what comes before ``engine.wrap`` ends no life that has begun."""


def plant(plan: dict[str, Any]) -> None:
    """Arrange in this process that the plan's faults happen."""
    if "die" in plan:
        fault_points.send_signal(*plan["die"])
    if "clock" in plan:
        ticks = itertools.count(0.0, plan["clock"])
        inject("run.clock", lambda seconds: next(ticks))
    if "insist" in plan:
        inject("run.leave", lambda: _insist(plan["insist"]))
    if "room" in plan:
        inject("disk.free", lambda free: plan["room"])
    if {"nan", "overflow", "spike", "slow", "hog", "error", "stop"} & set(plan):
        _plant_bad_steps(plan)


def _insist(times: int) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)


def hold_the_lock(seconds: float) -> None:
    """Keep every other thread of this process from running Python."""
    began = time.perf_counter()
    sum(itertools.repeat(1, 10_000_000))
    rate = 10_000_000 / (time.perf_counter() - began)
    sum(itertools.repeat(1, int(rate * seconds)))  # one call: the lock is not given up inside


def _plant_bad_steps(plan: dict[str, Any]) -> None:
    marked: list[torch.Tensor] = []
    now = {"step": 0}

    def mark(batch: StepBatch) -> StepBatch:
        first = 0
        for micro_batch in batch.micro_batches:
            rows = batch.samples[first : first + micro_batch.rows]
            first += micro_batch.rows
            if any((rows == np.array(sample)).all(axis=1).any() for sample in plan.get("nan", [])):
                marked.append(micro_batch.input_ids)
        return batch

    def begin(step: int, micro_step: int) -> None:
        now["step"] = step + 1
        time.sleep(plan.get("slow", 0.0) if micro_step == 0 else 0.0)
        if "hog" in plan:
            hold_the_lock(plan.pop("hog"))
        if plan.get("stop", math.inf) <= step + 1 and micro_step == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        if plan.get("error") == step + 1:
            raise DataError("a planted error")

    def spoil(output: Any, micro_batch: MicroBatch) -> Any:
        loss = output.mlm_loss_sum
        if any(torch.equal(micro_batch.input_ids, ids) for ids in marked):
            return output._replace(mlm_loss_sum=loss * math.nan)
        factor = plan.get("spike", {}).get(str(now["step"]), 1.0)
        if now["step"] in plan.get("overflow", []):
            factor = math.inf
        if factor != 1.0:
            loss.register_hook(lambda gradient: gradient * factor)
        return output

    inject("data.batch", mark)
    inject("engine.seed", begin)
    inject("engine.output", spoil)
