"""Measurements of ``gpu_check.py``, each in its own process: ceilings, attention, model alone.

```text
python benchmarks/gpu_stages.py machine|ceilings|attention|passes --json FILE [--tiny]
    [--data PREPARED_FOLDER] [--model large] [--length 128] [--rows 512] [--device cuda]
```

The result is written after each measurement, so a process that is stopped keeps its results.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from bertds.system.atomic_files import write_json

HEADS = {"large": 16, "base": 12, "tiny": 2}
HEAD_WIDTH = 64


def timed(run: Callable[[], object], device: str, repeats: int = 8, warm: int = 3) -> float:
    """Return the median milliseconds of a call, by the device's clock on a GPU."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def host_ms(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Return the median milliseconds that the host needs to ask for a call's work."""
    times = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    wait(device)
    return statistics.median(times)


def wait(device: str) -> None:
    """Wait until the device has done all that it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def machine(args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Say what is measured on; refuse what cannot be measured."""
    from benchmarks.common import facts
    from bertds.cost_model.hardware import kind_of

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; run bertds doctor to find out why")
    found: dict[str, Any] = {**facts("gpu_check.py", args.command), "gpu": None, "peak": None}
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        if properties.major < 8:
            raise SystemExit(
                f"{found['machine']}: bf16 and flash attention need compute capability 8.0 or "
                f"higher; this GPU has {properties.major}.{properties.minor}"
            )
        kind = kind_of(found["machine"])
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["driver"] = driver_version()
        found["gpu"] = kind.name if kind else ""
        found["peak"] = kind.peak_half if kind else None
    keep(found)


def driver_version() -> str:
    """Return the driver's version; "" where nvidia-smi does not report it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.splitlines()[0].strip() if answer.stdout else ""


def ceilings(args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Measure the matrix product and the copy: nothing can be quicker."""
    device, dtype = args.device, torch.bfloat16
    size = 256 if args.tiny else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    ms = timed(functools.partial(torch.matmul, left, right), device)
    result: dict[str, Any] = {"matmul_size": size, "matmul_tflops": 2 * size**3 / ms / 1e9}
    keep(result)
    tokens, width = (64, 128) if args.tiny else (28_672, 1024)
    products = {}
    for name, into, out in (("qkv", 1, 3), ("out", 1, 1), ("up", 1, 4), ("down", 4, 1)):
        values = torch.randn(tokens, into * width, device=device, dtype=dtype)
        weight = torch.randn(out * width, into * width, device=device, dtype=dtype)
        ms = timed(functools.partial(torch.matmul, values, weight.t()), device)
        products[name] = 2 * tokens * into * out * width**2 / ms / 1e9
    keep({**result, "products_tflops": products})
    del left, right
    count = 1 << (20 if args.tiny else 30)
    source = torch.zeros(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    ms = timed(lambda: target.copy_(source), device)
    keep({**result, "products_tflops": products, "copy_tb_s": 2 * count / ms / 1e9})


def read_micro_batch(args: argparse.Namespace) -> tuple[Any, int, Any]:
    """Return a micro batch on the host, the vocabulary's size and the case."""
    from benchmarks.contender import Case, read_batches

    case = Case(
        model=args.model,
        length=args.length,
        precision="bf16",
        rows=args.rows,
        steps=2,
        data=args.data,
    )
    batches, vocab_size, _ = read_batches(case, 1)
    return batches[0].micro_batches[0], vocab_size, case


def attention(args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Time one layer's attention, forward and backward, by kernel and dropout."""
    from bertds.model.attention_kernels import attend
    from bertds.model.row_layout import arrange

    micro_batch, _, _ = read_micro_batch(args)
    device, heads = args.device, HEADS[args.model]
    tokens = micro_batch.input_ids.numel()
    shape = (tokens, 3, heads, HEAD_WIDTH)
    qkv = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(tokens, heads, HEAD_WIDTH, device=device, dtype=torch.bfloat16)
    result: dict[str, Any] = {"tokens": tokens, "rows": micro_batch.rows, "kernels": {}}
    for kernel in ("flash", "padded") if device == "cuda" else ("grouped", "padded"):
        arrangement = arrange(micro_batch.cu_seqlens.to(device), micro_batch.max_seqlen, kernel)
        for dropout in (0.0, 0.1):

            def both(layout: Any = arrangement.layout, dropout: float = dropout) -> None:
                attend(*qkv.unbind(1), layout, dropout).backward(upstream)
                qkv.grad = None

            result["kernels"][f"{kernel}, dropout {dropout}"] = {
                "ms": timed(both, device, 2 if args.tiny else 8),
                "host_ms": host_ms(both, device),
            }
            keep(result)
    if device == "cuda":
        result["kernels"] |= own_attention(qkv.detach(), upstream, micro_batch)
        keep(result)


def own_attention(
    qkv: torch.Tensor, upstream: torch.Tensor, micro_batch: Any
) -> dict[str, dict[str, float]]:
    """Time the attention of fused layers, as they call it; short rows also in blocks."""
    from bertds.model.kernels.add_norm import draw_keys
    from bertds.model.kernels.long_rows import attend_long_rows, attend_long_rows_backward
    from bertds.model.kernels.short_rows import (
        LONGEST_ROW,
        attend_short_rows,
        attend_short_rows_backward,
        is_large_enough,
    )

    starts, longest = micro_batch.cu_seqlens.to(qkv.device), micro_batch.max_seqlen
    found = {}
    for dropout in (0.0, 0.1):
        [keys] = draw_keys(1, qkv.device)

        def short(keys: torch.Tensor = keys, dropout: float = dropout) -> None:
            attend_short_rows(qkv, starts, longest, dropout, keys)
            attend_short_rows_backward(upstream, qkv, starts, longest, dropout, keys)

        def long(keys: torch.Tensor = keys, dropout: float = dropout) -> None:
            attended = attend_long_rows(qkv, starts, longest, dropout, keys)
            attend_long_rows_backward(upstream, qkv, attended, starts, longest, dropout, keys)

        variants = {"fused layers'": long}
        if longest <= LONGEST_ROW and is_large_enough(qkv.device):
            variants = {"fused layers'": short, "the same in blocks": long}
        for name, both in variants.items():
            found[f"{name}, dropout {dropout}"] = {
                "ms": timed(both, "cuda"),
                "host_ms": host_ms(both, "cuda"),
            }
    return found


def passes(args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Time forward and backward of the whole model: its modules, layers fused, layers compiled."""
    from bertds.cost_model.flops import forward_backward_flops
    from bertds.model.bert import BertForPreTraining
    from bertds.model.compile_layers import compile_layers

    micro_batch, vocab_size, case = read_micro_batch(args)
    device, architecture = args.device, case.architecture(0.1)
    rows, masked = micro_batch.rows, micro_batch.masked_lm_ids.numel()
    tokens = micro_batch.input_ids.numel()
    flops = forward_backward_flops(architecture, vocab_size, tokens, masked, rows)
    inputs = micro_batch.to(device).model_inputs()
    torch.manual_seed(0)
    with torch.device(device):
        model = BertForPreTraining(architecture, vocab_size)
    model = model.to(device, torch.bfloat16).train()

    def both() -> None:
        model.zero_grad(set_to_none=True)
        output = model(**inputs)
        (output.mlm_loss_sum / masked + output.nsp_loss_sum / rows).backward()

    result: dict[str, Any] = {"rows": rows, "tokens": tokens, "flops": flops, "variants": {}}
    for name in ("modules", "fused", "compiled") if device == "cuda" else ("modules", "compiled"):
        if name == "fused":
            from bertds.model.fused_layer import fuse_layers

            fuse_layers(model)
        if name == "compiled" and not compile_layers(model, device, backend=args.backend):
            break
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        both()
        wait(device)
        first = time.perf_counter() - began
        ms = timed(both, device, 2 if args.tiny else 8)
        found = {
            "ms": ms,
            "rows_per_second": rows / ms * 1e3,
            "tokens_per_second": tokens / ms * 1e3,
            "tflops": flops / ms / 1e9,
            "host_ms": host_ms(both, device, 1 if args.tiny else 5),
            "first_seconds": first,
        }
        if device == "cuda":
            found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        result["variants"][name] = found
        keep(result)


STAGES = {"machine": machine, "ceilings": ceilings, "attention": attention, "passes": passes}


def main(argv: list[str] | None = None) -> int:
    """Measure one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--model", choices=HEADS, default="large")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="small sizes that take a second")
    parser.add_argument("--command", type=shlex.split, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    STAGES[args.stage](args, lambda result: write_json(args.json, result, durable=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
