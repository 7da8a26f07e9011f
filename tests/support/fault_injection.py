"""Faults that are planted in a training process: deaths at named points, bad rows, bad gradients.

A plan is a JSON-able dictionary; :func:`plant` puts it into this process.

```text
die     [point, n, signal]   send the signal to this process at the n-th passing of a point
nan     [[epoch, number]]    the loss of every micro batch with one of these samples is NaN
overflow [steps]             the loss of these steps is finite, the gradient is not
spike   {step: factor}       the gradient of this step is multiplied by this factor
slow    seconds              every step takes this much longer
drag    seconds              every forward pass takes this much longer
hog     seconds              the first step holds Python's lock for this long
stop    step                 SIGUSR1 comes while this step is under way, and in each later one
insist  n                    Ctrl-C arrives this number of times while the run is taken down
error   step                 this rank raises an error of its own in this step
block   rows                 blocks of the data are this small: an epoch has many
patience [seconds, file]  once the file exists, a store may fail to answer for this long
fault   [name, step]         one of FAULTS happens in this step
```
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bertds.data.batches import MicroBatch
from bertds.data.loader import StepBatch
from bertds.errors import DataError
from bertds.system import fault_points
from bertds.system.fault_points import inject

POINTS = tuple(
    name
    for name in fault_points.POINTS
    if name.startswith(("checkpoint.", "engine.", "run.continue", "metrics."))
    and name not in ("engine.seed", "engine.output")
)
"""Where a run may die; what comes before ``engine.wrap`` ends no life that has begun."""


class Killed(BaseException):
    """Simulates SIGKILL: no code catches it."""


def _raise_by_signal(number: int, frame: Any) -> None:
    raise RuntimeError("a planted exception")


def _async_exception() -> None:
    number = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(RuntimeError))
    time.sleep(0.1)


def _exception() -> None:
    raise RuntimeError("a planted exception")


def _signal_exception() -> None:
    signal.signal(signal.SIGUSR2, _raise_by_signal)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.1)


def _hold_the_lock() -> None:
    re.match(r"(a?){40}a{40}", "a" * 40)  # takes years, and does not let go of the lock


def _no_memory() -> None:
    """Run out of address space: no thread can be started, and small objects are hard to make."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    kept: list[bytes] = []
    for length in (1 << 20, 1 << 16):
        try:
            while True:
                kept.append(bytes(length))
        except MemoryError:
            continue
    raise MemoryError


def _gpu_error() -> None:
    index = torch.ones(1, dtype=torch.int64, device="cuda")
    torch.zeros(1, device="cuda")[index] = 1.0  # out of bounds: the device's context is lost


def _gpu_sleep() -> None:
    for _ in range(64):  # about a minute each at 2 GHz
        torch.cuda._sleep(1 << 37)


def _send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# The kinds that NVIDIA's resiliency extension injects, and three more.
FAULTS: dict[str, Callable[[], None]] = {
    "gpu_error": _gpu_error,
    "gpu_sleep": _gpu_sleep,
    "exception": _exception,
    "async_exception": _async_exception,
    "signal_exception": _signal_exception,
    "abort": os.abort,
    "lock": _hold_the_lock,
    "segfault": lambda: ctypes.memset(0, 0, 8) and None,
    "sigint": _send(signal.SIGINT),
    "sigkill": _send(signal.SIGKILL),
    "sigterm": _send(signal.SIGTERM),
    "sigstop": _send(signal.SIGSTOP),
    "sleep": lambda: time.sleep(10_000),
    "memory": _no_memory,
    "exit": lambda: sys.exit(0),
}


def plant(plan: dict[str, Any]) -> None:
    """Arrange in this process that the plan's faults happen."""
    if "die" in plan:
        fault_points.send_signal(*plan["die"])
    if "clock" in plan:
        ticks = itertools.count(0.0, plan["clock"])
        inject("run.clock", lambda seconds: next(ticks))
    if "insist" in plan:
        inject("run.leave", lambda: _insist(plan["insist"]))
    if "block" in plan:
        from bertds.data.sources import token_source

        token_source.BLOCK_ROWS = plan["block"]
    if "patience" in plan:
        seconds, file = plan["patience"]
        inject("store.patience", lambda usual: seconds if os.path.exists(file) else usual)
    if "room" in plan:
        inject("disk.free", lambda free: plan["room"])
    if "fault" in plan:
        _plant_fault(*plan["fault"])
    if {"nan", "overflow", "spike", "slow", "drag", "hog", "error", "stop"} & set(plan):
        _plant_bad_steps(plan)


def _plant_fault(name: str, at: int) -> None:
    def begin(step: int, micro_step: int) -> None:
        if step + 1 == at and micro_step == 1:
            FAULTS[name]()

    inject("engine.seed", begin)


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
        time.sleep(plan.get("drag", 0.0))
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
