"""How the time of a step is spent on the host, on the GPU, and in each kernel.

```text
python benchmarks/gpu_profile.py --data PREPARED [--model large] [--length 512] [--rows 64]
```

If the host takes as many milliseconds for a part as the GPU, the host is the limit. Kernel times
come from torch.profiler, in a separate step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import itertools

from benchmarks.common import add_result_options, facts, footer, write_result
from benchmarks.train_step import MODELS, OURS, Case, Contender, read_batches

PARTS = ("forward", "backward", "step")


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_parts(contender: Contender, batch: Any, masked: int, rows: int) -> dict[str, list[float]]:
    """Return milliseconds of each part: the host's until all is asked for, and the device's."""
    engine, device = contender.engine, contender.engine.device
    on_gpu = device.type == "cuda"
    marks, events = [], []

    def mark() -> None:
        if on_gpu:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
        marks.append(time.perf_counter())

    wait(device)
    mark()
    # As ``Engine.forward_backward`` does it, in two parts.
    output = engine._engine(**batch.model_inputs())
    loss = output.mlm_loss_sum / masked + output.nsp_loss_sum / rows
    mark()
    engine._engine.backward(loss)
    mark()
    engine.step()
    mark()
    wait(device)
    host = [(b - a) * 1e3 for a, b in itertools.pairwise(marks)]
    gpu = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return {"host_ms": host, "gpu_ms": gpu}


def longest_kernels(contender: Contender, batch: Any, masked: int, rows: int) -> dict[str, Any]:
    """Return the kernels of one step (operators on a CPU) by the time that they take."""
    on_gpu = contender.engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiled:
        contender.step([batch], masked, rows)
        wait(contender.engine.device)
    found = []
    for event in profiled.key_averages():
        if on_gpu and (event.device_type.name != "CUDA" or event.is_user_annotation):
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found.append({"name": event.key[:90], "calls": event.count, "ms": us / 1e3})
    found.sort(key=lambda kernel: -kernel["ms"])
    return {"total_ms": sum(kernel["ms"] for kernel in found), "kernels": found[:24]}


def measure(case: Case) -> dict[str, Any]:
    """Measure one model on rows of one length."""
    batches, vocab_size, _ = read_batches(case, case.steps + 3)
    micros = [batch.micro_batches[0] for batch in batches]
    contender = Contender(OURS, case, vocab_size, dropout=0.1)
    for step_batch in batches[:2]:  # allocate and compile
        contender.timed_step(step_batch)
    lines = []
    for micro in micros[2:-1]:
        batch = contender.prepare(micro)
        masked = micro.masked_lm_ids.numel()
        parts = time_parts(contender, batch, masked, micro.rows)
        lines.append({"tokens": micro.input_ids.numel(), **parts})
    last = micros[-1]
    batch, masked = contender.prepare(last), last.masked_lm_ids.numel()
    kernels = longest_kernels(contender, batch, masked, last.rows)
    contender.engine.close()
    return {"rows": case.rows, "length": case.length, "steps": lines, **kernels}


def medians(result: dict[str, Any]) -> dict[str, list[float]]:
    """Return the median milliseconds of each part, on the host and (with one) on the GPU."""
    found = {}
    for kind in ("host_ms", "gpu_ms"):
        rows = [line[kind] for line in result["steps"] if line[kind]]
        if rows:
            columns = zip(*rows, strict=True)
            found[kind.removesuffix("_ms")] = [statistics.median(column) for column in columns]
    return found


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['model']}, {result['rows']} rows of {result['length']}, median ms of a step")
    for place, values in medians(result).items():
        words = "  ".join(f"{p} {v:6.1f}" for p, v in zip(PARTS, values, strict=True))
        print(f"  {place:5} {words}  together {sum(values):6.1f}")
    print(f"  kernels of one step: {result['total_ms']:.1f} ms")
    for kernel in result["kernels"]:
        print(f"  {kernel['ms']:8.2f} ms {kernel['calls']:5d}  {kernel['name']}")
    print(footer(result))


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--model", choices=MODELS, default="large")
    parser.add_argument("--length", type=int, default=512, help="tokens per row (512)")
    parser.add_argument("--rows", type=int, default=64, help="rows per step (64)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps (6)")
    add_result_options(parser)
    args = parser.parse_args(argv)
    case = Case(
        model=args.model,
        length=args.length,
        precision="bf16",
        rows=args.rows,
        steps=args.steps,
        data=args.data,
        compile=torch.cuda.is_available(),
        torch_adam=True,
    )
    result = {**facts("gpu_profile.py", argv, args.note), "model": args.model, **measure(case)}
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
