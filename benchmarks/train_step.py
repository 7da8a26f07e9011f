"""Our training step against transformers' under the same DeepSpeed JSON on the same rows.

```text
python benchmarks/train_step.py [--data PREPARED_FOLDER] [--model base] [--lengths 128 512]
    [--precisions fp32 bf16] [--rows 16] [--steps 4] [--json FILE] [--picture FILE.png]
```

Both models live in one process and take turns, step by step, on the same micro-batch, so that a
busy moment hits both. The first part shows that they compute the same: equal weights, dropout 0,
losses side by side. The second times whole steps (forward, backward, optimizer) with dropout 0.1.
Padded slots are those of the batch padded to its longest row. MFU is the formula of
``bertds/cost_model/flops.py`` on real tokens, against the device's data-sheet peak, or on a CPU
against its own matrix product. ``--tiny`` runs everything at a size that takes seconds, for CI.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common import (
    add_result_options,
    draw,
    facts,
    matrix_rate,
    median_ratio,
    write_result,
)
from benchmarks.parts import PartTimer, compiled_graphs
from benchmarks.peer import Peer, pad_batch
from benchmarks.step_report import OURS, PEER, paint, show
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.cost_model.flops import forward_backward_flops
from bertds.cost_model.hardware import peak_of
from bertds.data.loader import BatchLoader, MicroBatch, StepBatch, open_source
from bertds.data.sources.base import Source
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers
from bertds.pretrained.hf_weights import load_transformers_state_dict
from bertds.system.memory import peak_memory_gib

MODELS = {"tiny": (128, 2, 2), "mini": (256, 4, 4), "base": (768, 12, 12), "large": (1024, 24, 16)}
PREDICTIONS = {128: 20, 512: 80}
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One line of the table."""

    model: str
    length: int
    precision: str
    rows: int
    steps: int
    data: str
    compile: bool = False
    torch_adam: bool = False

    def architecture(self, dropout: float) -> ModelConfig:
        """Return the model's settings."""
        width, layers, heads = MODELS[self.model]
        return ModelConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )

    def deepspeed_json(self) -> dict[str, Any]:
        """Return the DeepSpeed JSON that both run under."""
        params: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01}
        if self.torch_adam:
            params["torch_adam"] = True
        values: dict[str, Any] = {
            "train_batch_size": self.rows,
            "train_micro_batch_size_per_gpu": self.rows,
            "optimizer": {"type": "AdamW", "params": params},
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
        }
        if self.precision == "bf16":
            values["bf16"] = {"enabled": True}
        return values


def open_rows(data: str, length: int, predictions: int) -> tuple[Source, DataConfig]:
    """Open a prepared folder, or make a small corpus up."""
    config = DataConfig(
        path=data, sequence_length=length, max_predictions_per_sequence=predictions, verify="size"
    )
    if data:
        return open_source(config, SEED), config
    from benchmarks.loader import synthetic_source  # sets thread counts: not before torch

    return synthetic_source(config.rows, 2_000_000), config


def read_batches(case: Case, count: int) -> tuple[list[StepBatch], int, float]:
    """Return so many batches, the vocabulary's size, and the loader's seconds for one."""
    predictions = PREDICTIONS.get(case.length, case.length * 5 // 32)
    source, config = open_rows(case.data, case.length, predictions)
    plan = check_deepspeed_values(case.deepspeed_json()).batch_plan(1)
    with BatchLoader(source, config, plan, 0, seed=SEED) as loader:
        next(loader)
        began = time.process_time()
        batches = [next(loader) for _ in range(max(count, 16))]
        seconds = (time.process_time() - began) / len(batches)
    return batches[:count], source.tokenizer.vocab_size, seconds


class Contender:
    """One model under its own engine."""

    def __init__(self, name: str, case: Case, vocab_size: int, dropout: float) -> None:
        architecture = case.architecture(dropout)
        torch.manual_seed(SEED)
        peer = Peer(architecture, vocab_size)
        model: torch.nn.Module = peer
        if name == OURS:
            model = BertForPreTraining(architecture, vocab_size)
            load_transformers_state_dict(model, peer.model.state_dict())
            if case.compile and torch.cuda.is_available():
                from bertds.model.fused_layer import fuse_layers

                fuse_layers(model)
            elif case.compile:
                compile_layers(model, "cpu")
        self.name = name
        self.settings = check_deepspeed_values(case.deepspeed_json())
        plan = self.settings.batch_plan(1)
        self.engine = Engine.create(model, self.settings, plan, seed=SEED)
        self.module = model
        self.timer: PartTimer | None = None

    def prepare(self, batch: MicroBatch) -> Any:
        """Return the batch as this contender takes it, on the device."""
        return (batch if self.name == OURS else pad_batch(batch)).to(self.engine.device)

    def step(self, batch: Any, masked: int, rows: int) -> torch.Tensor:
        """Make one optimizer step; returns the loss (mean per masked token plus mean per row)."""
        ours = self.name == OURS
        scales = (1.0 / masked, 1.0 / rows) if ours else (1.0, 0.0)
        output = self.engine.forward_backward(batch, mlm_scale=scales[0], nsp_scale=scales[1])
        if self.timer is None:
            self.engine.step()
        else:
            with self.timer.timed("optimizer"):
                self.engine.step()
        return output.mlm_loss_sum * scales[0] + output.nsp_loss_sum * scales[1]

    def timed_step(self, batch: MicroBatch) -> tuple[float, float]:
        """Return the seconds of one step by the clock, and of all threads together."""
        prepared = self.prepare(batch)
        _wait(self.engine.device)
        began, used = time.perf_counter(), time.process_time()
        self.step(prepared, batch.masked_lm_ids.numel(), batch.rows)
        _wait(self.engine.device)
        return time.perf_counter() - began, time.process_time() - used

    def breakdown(self, batch: MicroBatch) -> dict[str, float]:
        """Return seconds by part of one step of its own."""
        self.timer = PartTimer(self.engine.device.type)
        prepared = self.prepare(batch)
        with self.timer.watching(self.module), self.timer.timed("whole step"):
            self.step(prepared, batch.masked_lm_ids.numel(), batch.rows)
        seconds, self.timer = dict(self.timer.seconds), None
        named = sum(value for part, value in seconds.items() if part != "whole step")
        return {**seconds, "other": max(0.0, seconds["whole step"] - named)}


def close(contenders: list[Contender]) -> None:
    """End engines that share one process group, which goes with the last one."""
    for contender in contenders[:-1]:
        contender.engine._engine.destroy()
    contenders[-1].engine.close()
    for contender in contenders:
        del contender.engine, contender.module
    gc.collect()  # DeepSpeed's engines are full of cycles, and hold gigabytes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_losses(case: Case, batches: list[StepBatch], vocab_size: int) -> dict[str, Any]:
    """Train both from equal weights without dropout and return their losses."""
    losses: dict[str, list[float]] = {}
    for name in (OURS, PEER):
        contender = Contender(name, case, vocab_size, dropout=0.0)
        losses[name] = []
        for batch in batches:
            [micro] = batch.micro_batches
            prepared = contender.prepare(micro)
            loss = contender.step(prepared, micro.masked_lm_ids.numel(), micro.rows)
            losses[name].append(round(float(loss), 6))
        close([contender])
    pairs = zip(losses[OURS], losses[PEER], strict=True)
    largest = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    return {**losses, "largest_relative_difference": largest}


def time_steps(
    case: Case, batches: list[StepBatch], vocab_size: int, *, parts: bool = True
) -> dict[str, Any]:
    """Time both in turn, and the parts of one step each."""
    contenders = [Contender(name, case, vocab_size, dropout=0.1) for name in (OURS, PEER)]
    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    cpu: dict[str, list[float]] = {OURS: [], PEER: []}
    micros = [batch.micro_batches[0] for batch in batches]
    graphs = [compiled_graphs()]
    for number, micro in enumerate(micros):
        # The first step of each allocates and compiles; who goes first alternates.
        for contender in contenders if number % 2 else reversed(contenders):
            by_clock, of_threads = contender.timed_step(micro)
            if number:
                seconds[contender.name].append(by_clock)
                cpu[contender.name].append(of_threads)
        graphs.append(compiled_graphs())
    shares = {c.name: c.breakdown(micros[-1]) if parts else {} for c in contenders}
    close(contenders)
    measured = micros[1:]
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
        contender.timed_step(batch.micro_batches[0])
        peak_memory_gib()  # a look of its own after each step: it sees more than one at the end
    peak = peak_memory_gib()
    contender.engine.close()
    print(peak)


def run_case(case: Case, *, memory: bool, peak: float | None, times_only: bool) -> dict[str, Any]:
    """Measure one line of the table."""
    batches, vocab_size, loader_seconds = read_batches(case, case.steps + 1)
    line: dict[str, Any] = {
        "model": case.model,
        "length": case.length,
        "precision": case.precision,
        "rows": case.rows,
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
    parser.add_argument("--rows", type=int, default=16, help="rows of a step, one micro-batch")
    parser.add_argument("--steps", type=int, default=4, help="timed steps (one more warms up)")
    parser.add_argument(
        "--memory", action="store_true", help="also peak memory, in processes apart"
    )
    parser.add_argument(
        "--times-only", action="store_true", help="neither compare losses nor time the parts"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="ours with fused layers (GPU), or compiled ones (CPU); counts recompilations",
    )
    parser.add_argument(
        "--torch-adam", action="store_true", help="torch's fused AdamW: nothing to compile first"
    )
    parser.add_argument("--tiny", action="store_true", help="BERT-tiny, few rows: takes seconds")
    add_result_options(parser)
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="JSON", help="measure nothing: show stored results"
    )
    parser.add_argument("--memory-of", choices=(OURS, PEER), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.tiny:
        args.model, args.rows, args.steps = "tiny", 4, 2
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    args = parse(argv)
    if args.show:
        stored = [json.loads(path.read_text(encoding="utf-8")) for path in args.show]
        for line in (lines := [line for result in stored for line in result["lines"]]):
            show(line)
        draw(args.picture, paint({**stored[0], "lines": lines}))
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
    draw(args.picture, paint(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
