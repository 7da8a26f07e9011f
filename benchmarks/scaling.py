"""Tokens per second on 1, 2 and 4 CPU processes, and the communication between them.

```text
python benchmarks/scaling.py [--data PREPARED_FOLDER] [--model mini] [--processes 1 2 4]
    [--stages 1] [--json FILE]
```

Each process has one thread and the same work for any number of processes. The scaling of the
machine itself is also measured: the same processes multiply matrices without communication. The
bytes that each step sends are counted at the calls of ``torch.distributed`` and compared with the
model of ``bertds plan``. This model then gives the bytes for 8 to 4,096 GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.collectives import Count, counting
from benchmarks.common import add_result_options, facts, matrix_rate, write_result
from benchmarks.contender import MODELS, PREDICTIONS, open_rows
from bertds.config.recipe import ModelConfig
from bertds.cost_model.memory import Shape
from bertds.cost_model.step_time import bytes_sent
from bertds.data.loader import BatchLoader
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model.bert import BertForPreTraining

GPUS = (8, 64, 512, 4096)


def architecture(name: str) -> ModelConfig:
    """Return a model's settings."""
    width, layers, heads = MODELS[name]
    return ModelConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


def shape_of(model: str, stage: int, processes: int, precision: str, on_cpu: bool) -> Shape:
    """Return what the model of ``bertds plan`` is asked about."""
    return Shape(
        model=architecture(model),
        vocab_size=30_522,
        sequence_length=128,
        tokens_per_row=115,
        masked_per_row=17,
        micro_batch=8,
        precision=precision,
        stage=stage,
        world_size=processes,
        optimizer="AdamW",
        on_cpu=on_cpu,
    )


def predicted_bytes(shape: Shape, accumulation: int) -> float:
    """Return what a rank sends per step by the plan's model, and by DeepSpeed's way to reduce.

    The plan counts the least: gradients of which each rank receives only its part. DeepSpeed 0.19.8
    all-reduces them at stages 1 and 2 as well, twice as much, and then keeps its part.
    """
    reduced, gathered = bytes_sent(shape, accumulation)
    return (2.0 if shape.stage in (1, 2) else 1.0) * reduced + gathered


def rank_job(job: dict[str, Any]) -> None:
    """Train as one rank; rank 0 prints what was found."""
    # From the start: DeepSpeed keeps references to some of the calls.
    with counting() as count:
        _train_and_count(job, count)


def _train_and_count(job: dict[str, Any], count: Count) -> None:
    torch.set_num_threads(1)
    world, stage, accumulation = job["processes"], job["stage"], job["accumulation"]
    values: dict[str, Any] = {
        "train_batch_size": job["rows"] * accumulation * world,
        "train_micro_batch_size_per_gpu": job["rows"],
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": {"stage": stage},
        **job.get("values", {}),
    }
    settings = check_deepspeed_values(values)
    plan = settings.batch_plan(world)
    source, config = open_rows(job["data"], 128, PREDICTIONS[128])
    torch.manual_seed(1)
    model = BertForPreTraining(architecture(job["model"]), source.tokenizer.vocab_size)
    engine = Engine.create(model, settings, plan, seed=1)
    loader = BatchLoader(source, config, plan, engine.rank, seed=1)

    def step() -> int:
        batch = next(loader)
        scale = 1.0 / max(batch.masked_tokens, 1)
        for micro_batch in batch.micro_batches:
            engine.forward_backward(micro_batch, mlm_scale=scale, nsp_scale=1e-3)
        engine.step()
        return batch.real_tokens

    step()
    count.clear()
    step()
    calls, payload, dtypes = dict(count.calls), dict(count.payload), dict(count.dtypes)
    sent = count.sent
    tokens, seconds = 0, []
    for _ in range(job["steps"]):
        engine.global_sums([0.0])
        began = time.perf_counter()
        tokens += step()
        engine.global_sums([0.0])
        seconds.append(time.perf_counter() - began)
    loader.close()
    engine.global_sums([0.0])
    rate = matrix_rate(torch.float32, seconds=job["matrix_seconds"], size=512, typical=True)
    found = {
        "tokens_per_second": sum(engine.gather_objects(tokens)) / sum(seconds),
        "median_seconds": statistics.median(seconds),
        "matrix_gflops": sum(engine.gather_objects(rate)) / 1e9,
        "calls_per_step": calls,
        "payload_bytes": payload,
        "bytes_by_dtype": dtypes,
        "bytes_sent": sent,
    }
    main = engine.rank == 0
    engine.close()
    if main:
        print("FOUND " + json.dumps(found), flush=True)


def run_ranks(job: dict[str, Any]) -> dict[str, Any]:
    """Start the processes and return what rank 0 found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = job["processes"]
    ranks = []
    for rank in range(world):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "DS_ACCELERATOR": "cpu",
        }
        command = [sys.executable, "-W", "ignore", __file__, "--rank-job", json.dumps(job)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    texts = [rank.communicate()[0] for rank in ranks]
    for line in texts[0].splitlines():
        if line.startswith("FOUND "):
            return json.loads(line.removeprefix("FOUND "))  # type: ignore[no-any-return]
    raise SystemExit(
        f"rank 0 of {world} returned no result (exit codes {[r.returncode for r in ranks]})"
    )


def volumes() -> list[dict[str, Any]]:
    """Return what each GPU of many would send per step of BERT-large, by the model."""
    rows = []
    for gpus in GPUS:
        shape = shape_of("large", 1, gpus, "bf16", on_cpu=False)
        sent = predicted_bytes(shape, 1)
        # One step of 65,536 rows of 128 tokens, at 2,300 rows per second and GPU.
        seconds = 65_536 / gpus / 2_300
        rows.append({"gpus": gpus, "gib_per_step": sent / 2**30, "seconds_of_arithmetic": seconds})
    return rows


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['machine']}, {result['cores']} cores, load {result['load_average']}")
    print("stage processes   tokens/s  scaling  matrices   calls  MB sent a step  by the model")
    for line in result["lines"]:
        print(
            f"{line['stage']:5}{line['processes']:10}{line['tokens_per_second']:11,.0f}"
            f"{line['scaling']:9.2f}{line['matrix_scaling']:10.2f}"
            f"{sum(line['calls_per_step'].values()):8}{line['bytes_sent'] / 1e6:16.1f}"
            f"{line['model_bytes'] / 1e6:14.1f}"
        )
    print("\nBERT-large, stage 1, bf16, by the model: what a GPU sends for a step of 65,536 rows")
    for row in result["many"]:
        print(
            f"{row['gpus']:6} GPUs: {row['gib_per_step']:.2f} GiB compared with "
            f"{row['seconds_of_arithmetic']:.2f} s of arithmetic"
        )


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[1], choices=range(4))
    parser.add_argument("--rows", type=int, default=8, help="rows per micro batch and process")
    parser.add_argument("--accumulation", type=int, default=8, help="micro batches per step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--tiny", action="store_true", help="BERT-tiny, 1 and 2 processes")
    add_result_options(parser)
    parser.add_argument("--rank-job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank_job:
        rank_job(json.loads(args.rank_job))
        return 0
    if args.tiny:
        args.model, args.processes, args.steps, args.accumulation = "tiny", [1, 2], 1, 2
    result = facts("scaling.py", argv, args.note)
    result["threads"], result["lines"] = 1, []
    common = {
        "data": args.data,
        "model": args.model,
        "rows": args.rows,
        "accumulation": args.accumulation,
        "steps": args.steps,
        "matrix_seconds": 0.2 if args.tiny else 2.0,
    }
    # The first run of all compiles, and finds a machine whose memory is not at hand yet.
    run_ranks({**common, "stage": args.stages[0], "processes": args.processes[0]})
    for stage in args.stages:
        first = None
        for processes in args.processes:
            job = {**common, "stage": stage, "processes": processes}
            line = {"stage": stage, "processes": processes, **run_ranks(job)}
            first = first or line
            line["scaling"] = line["tokens_per_second"] / first["tokens_per_second"]
            line["matrix_scaling"] = line["matrix_gflops"] / first["matrix_gflops"]
            shape = shape_of(args.model, stage, processes, "fp32", on_cpu=True)
            line["model_bytes"] = predicted_bytes(shape, args.accumulation)
            result["lines"].append(line)
    result["many"] = volumes()
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
