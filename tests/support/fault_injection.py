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
block   rows                 blocks of the data are this small: an epoch has many
```
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

POINTS = (
    "wrap", "build", "forward", "step", "stepped", "validation", "fresh", "write", "sync",
    "manifest", "publish", "published", "latest", "remove", "metrics",
)  # fmt: skip


def plant(plan: dict[str, Any]) -> None:
    """Change this process so that the plan's faults happen."""
    if "die" in plan:
        _plant_death(*plan["die"])
    if "clock" in plan:
        from bertds.training import clock

        ticks = itertools.count(0.0, plan["clock"])
        clock.seconds = lambda: next(ticks)
    if "insist" in plan:
        from bertds.training.leaving import Leaving

        def insist() -> None:
            for _ in range(plan["insist"]):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)

        _before(Leaving, "leave", insist)
    if "block" in plan:
        from bertds.data.sources import token_source

        token_source.BLOCK_ROWS = plan["block"]
    if "room" in plan:
        from bertds.checkpoint import save

        save.free_bytes = lambda folder: plan["room"]
    if {"nan", "overflow", "spike", "slow", "hog", "error", "stop"} & set(plan):
        _plant_bad_steps(plan)


def hold_the_lock(seconds: float) -> None:
    """Keep every other thread of this process from running Python."""
    began = time.perf_counter()
    sum(itertools.repeat(1, 10_000_000))
    rate = 10_000_000 / (time.perf_counter() - began)
    sum(itertools.repeat(1, int(rate * seconds)))  # one call: the lock is not given up inside


def _before(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        act()
        return original(*arguments, **options)

    setattr(owner, name, changed)


def _after(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        act()
        return result

    setattr(owner, name, changed)


def _plant_death(point: str, passing: int, number: int) -> None:
    from bertds.checkpoint import format as checkpoint_format
    from bertds.checkpoint import save
    from bertds.engine import deepspeed_engine
    from bertds.engine.deepspeed_engine import Engine
    from bertds.monitor import metrics
    from bertds.training import build

    left = [passing]

    def die() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    places = {
        "meet": lambda: _before(build, "meet_processes", die),
        "wrap": lambda: _before(deepspeed_engine, "build_optimizer", die),
        "build": lambda: _before(build, "continue_run", die),
        "forward": lambda: _before(Engine, "forward_backward", die),
        "step": lambda: _before(Engine, "step", die),
        "stepped": lambda: _after(Engine, "step", die),
        "validation": lambda: _before(Engine, "eval_forward", die),
        "fresh": lambda: _after(save.Checkpoints, "_fresh", die),
        "write": lambda: _before(checkpoint_format.HashingFile, "write", die),
        "sync": lambda: _before(checkpoint_format.HashingFile, "close", die),
        "manifest": lambda: _before(save, "write_manifest", die),
        "publish": lambda: _before(Path, "rename", die),
        "published": lambda: _after(Path, "rename", die),
        "latest": lambda: _before(save, "write_text", die),
        "remove": lambda: _before(save.shutil, "rmtree", die),
        "metrics": lambda: _before(metrics.Metrics, "write", die),
    }
    assert set(places) == {*POINTS, "meet"}  # one that only a launcher sees ends no life
    places[point]()


def _plant_bad_steps(plan: dict[str, Any]) -> None:
    from bertds.data.loader import BatchLoader
    from bertds.engine.deepspeed_engine import Engine
    from bertds.errors import DataError
    from bertds.model.bert import BertForPreTraining

    marked: list[torch.Tensor] = []
    now = {"step": 0}
    make, seed, forward = BatchLoader._make, Engine.seed_dropout, BertForPreTraining.forward

    def make_and_mark(self: Any, *where: Any) -> Any:
        batch = make(self, *where)
        first = 0
        for micro_batch in batch.micro_batches:
            rows = batch.samples[first : first + micro_batch.rows]
            first += micro_batch.rows
            if any((rows == np.array(sample)).all(axis=1).any() for sample in plan.get("nan", [])):
                marked.append(micro_batch.input_ids)
        return batch

    def note_step(self: Any, number: int, step: int, micro_step: int) -> None:
        now["step"] = step + 1
        time.sleep(plan.get("slow", 0.0) if micro_step == 0 else 0.0)
        if "hog" in plan:
            hold_the_lock(plan.pop("hog"))
        if plan.get("stop", math.inf) <= step + 1 and micro_step == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        if plan.get("error") == step + 1:
            raise DataError("a planted error")
        seed(self, number, step, micro_step)

    def spoil(self: Any, input_ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        output = forward(self, input_ids, *arguments, **options)
        loss = output.mlm_loss_sum
        if any(torch.equal(input_ids, ids) for ids in marked):
            return output._replace(mlm_loss_sum=loss * math.nan)
        factor = plan.get("spike", {}).get(str(now["step"]), 1.0)
        if now["step"] in plan.get("overflow", []):
            factor = math.inf
        if factor != 1.0 and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * factor)
        return output

    BatchLoader._make = make_and_mark  # type: ignore[method-assign]
    Engine.seed_dropout = note_step  # type: ignore[method-assign]
    BertForPreTraining.forward = spoil  # type: ignore[method-assign]
