"""Compare our training step with transformers', with the same DeepSpeed JSON and rows.

```text
python benchmarks/train_step.py [--data PREPARED_FOLDER] [--model base] [--lengths 128 512]
    [--precisions fp32 bf16] [--rows 16] [--steps 4] [--json FILE]
```

Both models are in one process and alternate step by step on the same micro batch, so a busy machine
affects both. The first part shows that they compute the same: it compares losses with equal weights
and dropout 0. The second part times complete steps with dropout 0.1.

Padded slots are those of the batch padded to its longest row. MFU uses the formula of
``bertds/cost_model/flops.py`` on real tokens. It is relative to the data-sheet peak of a GPU, or to
the matrix product measured on a CPU. ``--tiny`` runs everything in seconds, for CI.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common import (
    add_result_options,
    facts,
    matrix_rate,
    median_ratio,
    write_result,
)
from benchmarks.contender import MODELS, Case, Contender, close, read_batches
from benchmarks.parts import compiled_graphs
from benchmarks.step_report import OURS, PEER, show
from bertds.cost_model.flops import forward_backward_flops
from bertds.cost_model.hardware import peak_of
from bertds.data.loader import StepBatch
from bertds.system.memory import peak_memory_gib

WARM_UP = 2
"""Steps before the timed ones: the first compiles; the second may still allocate."""


def compare_losses(case: Case, batches: list[StepBatch], vocab_size: int) -> dict[str, Any]:
    """Train both from equal weights without dropout, on one micro-batch per step."""
    case = dataclasses.replace(case, accumulation=1, peer_rows=0)
    losses: dict[str, list[float]] = {}
    for name in (OURS, PEER):
        contender = Contender(name, case, vocab_size, dropout=0.0)
        losses[name] = []
        for batch in batches:
            micro = batch.micro_batches[0]
            prepared = contender.prepare(micro)
            loss = contender.step([prepared], micro.masked_lm_ids.numel(), micro.rows)
            losses[name].append(round(float(loss), 6))
        close([contender])
    pairs = zip(losses[OURS], losses[PEER], strict=True)
    largest = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    return {**losses, "largest_relative_difference": largest}


def time_steps(
    case: Case, batches: list[StepBatch], vocab_size: int, *, parts: bool = True
) -> dict[str, Any]:
    """Time both in turn, and the parts of one step each."""
    contenders = [Contender(name, case.of(name), vocab_size, dropout=0.1) for name in (OURS, PEER)]
    steps = {OURS: batches, PEER: batches}
    if case.peer_rows:  # the same rows, in other micro-batches
        steps[PEER] = read_batches(case.of(PEER), len(batches))[0]
    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    cpu: dict[str, list[float]] = {OURS: [], PEER: []}
    graphs = [compiled_graphs()]
    for number in range(len(batches)):
        # The first steps of each allocate and compile; who goes first alternates.
        for contender in contenders if number % 2 else reversed(contenders):
            by_clock, of_threads = contender.timed_step(steps[contender.name][number])
            if number >= WARM_UP:
                seconds[contender.name].append(by_clock)
                cpu[contender.name].append(of_threads)
        graphs.append(compiled_graphs())
    shares = {c.name: c.breakdown(steps[c.name][-1]) if parts else {} for c in contenders}
    close(contenders)
    micros = [micro for batch in batches for micro in batch.micro_batches]
    measured = [micro for batch in batches[WARM_UP:] for micro in batch.micro_batches]
    real = sum(micro.input_ids.numel() for micro in measured)
    slots = sum(micro.rows * micro.max_seqlen for micro in measured)
    flops = sum(
        forward_backward_flops(
            case.architecture(0.1),
            vocab_size,
            micro.input_ids.numel(),
            micro.masked_lm_ids.numel(),
            micro.rows,
        )
        for micro in measured
    )
    result: dict[str, Any] = {
        "padding": round(1.0 - real / slots, 4),
        "speedup": round(median_ratio(seconds[OURS], seconds[PEER]), 3),
        "speedup_of_totals": round(sum(seconds[PEER]) / sum(seconds[OURS]), 3),
        "speedup_of_cpu_seconds": round(sum(cpu[PEER]) / sum(cpu[OURS]), 3),
    }
    for name, times in seconds.items():
        result[name] = {
            "seconds_per_step": [round(value, 4) for value in times],
            "median_seconds": round(statistics.median(times), 4),
            "cpu_seconds_per_step": [round(value, 4) for value in cpu[name]],
            "real_tokens_per_second": round(real / sum(times), 1),
            "padded_tokens_per_second": round(slots / sum(times), 1),
            "sequences_per_second": round(sum(m.rows for m in measured) / sum(times), 2),
            "tflops": round(flops / sum(times) / 1e12, 4),
            "parts": {part: round(value, 4) for part, value in sorted(shares[name].items())},
        }
    if case.compile:
        result["graphs_compiled_by_step"] = [after - before for before, after in pairwise(graphs)]
        result["token_counts_seen"] = len({micro.input_ids.numel() for micro in micros})
    return result


def memory_of(name: str, case: Case) -> float:
    """Return GiB of peak memory of a process of its own that makes two steps."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--data",
        case.data,
        "--model",
        case.model,
        "--lengths",
        str(case.length),
        "--precisions",
        case.precision,
        "--rows",
        str(case.rows),
        "--accumulation",
        str(case.accumulation),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def report_memory(name: str, case: Case) -> None:
    """Make two steps and print the peak of this process."""
    batches, vocab_size, _ = read_batches(case, 2)
    contender = Contender(name, case, vocab_size, dropout=0.1)
    if contender.engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for batch in batches:
        contender.timed_step(batch)
        peak_memory_gib()  # a look of its own after each step: it sees more than one at the end
    peak = peak_memory_gib()
    contender.engine.close()
    print(peak)


def run_case(case: Case, *, memory: bool, peak: float | None, times_only: bool) -> dict[str, Any]:
    """Measure one line of the table."""
    batches, vocab_size, loader_seconds = read_batches(case, case.steps + WARM_UP)
    line: dict[str, Any] = {
        "model": case.model,
        "length": case.length,
        "precision": case.precision,
        "rows": case.rows,
        "accumulation": case.accumulation,
        "peer_rows": case.of(PEER).rows,
        **({} if times_only else {"equality": compare_losses(case, batches[:2], vocab_size)}),
        **time_steps(case, batches, vocab_size, parts=not times_only),
        "loader_cpu_seconds_per_step": round(loader_seconds, 5),
    }
    for name in (OURS, PEER):
        if peak:
            line[name]["mfu"] = round(line[name]["tflops"] * 1e12 / peak, 4)
        if memory:
            line[name]["peak_memory_gib"] = memory_of(name, case)
    return line


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rows", type=int, default=16, help="rows per micro batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro batches per step")
    parser.add_argument(
        "--peer-rows",
        type=int,
        default=0,
        help="rows per micro batch of transformers, where its largest is smaller than ours",
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after two for warm-up")
    parser.add_argument(
        "--memory", action="store_true", help="also measure peak memory, in separate processes"
    )
    parser.add_argument(
        "--times-only", action="store_true", help="do not compare losses or time the parts"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="use fused layers (GPU) or compiled ones (CPU) for ours; count recompilations",
    )
    parser.add_argument(
        "--torch-adam",
        action="store_true",
        help="use torch's fused AdamW, which needs no compilation",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="use BERT-tiny and few rows; takes seconds"
    )
    add_result_options(parser)
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="show stored results and measure nothing",
    )
    parser.add_argument("--memory-of", choices=(OURS, PEER), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.tiny:
        args.model, args.rows, args.steps = "tiny", 4, 2
    if args.peer_rows and args.rows * args.accumulation % args.peer_rows:
        parser.error("--peer-rows must divide the rows of a step, --rows times --accumulation")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    args = parse(argv)
    if args.show:
        stored = [json.loads(path.read_text(encoding="utf-8")) for path in args.show]
        for line in [line for result in stored for line in result["lines"]]:
            show(line)
        return 0
    cases = [
        Case(
            model=args.model,
            length=length,
            precision=precision,
            rows=args.rows,
            steps=args.steps,
            data=args.data,
            compile=args.compile,
            torch_adam=args.torch_adam,
            accumulation=args.accumulation,
            peer_rows=args.peer_rows,
        )
        for length in args.lengths
        for precision in args.precisions
    ]
    if args.memory_of:
        report_memory(args.memory_of, cases[0])
        return 0
    result = facts("train_step.py", argv, args.note)
    peaks = {}
    for precision in args.precisions:
        peaks[precision] = peak_of(result["machine"], precision)
        if peaks[precision] is None:
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            seconds = 0.1 if args.tiny else 4.0
            peaks[precision] = matrix_rate(dtype, result["device"], seconds)
    result["peak_tflops"] = {name: round(value / 1e12, 3) for name, value in peaks.items()}
    print(f"{result['machine']}, {result['threads']} threads, load {result['load_average']}")
    result["lines"] = []
    for case in cases:
        line = run_case(
            case, memory=args.memory, peak=peaks[case.precision], times_only=args.times_only
        )
        result["lines"].append(line)
        show(line)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
