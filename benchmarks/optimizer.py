"""Time per optimizer step: our LAMB compared with torch's fused AdamW, on BERT-sized tensors.

Both alternate in one process, each on one flat vector as in ZeRO. Our LAMB uses compiled loops on a
CPU, and Triton kernels on a GPU. On a GPU, DeepSpeed's FusedAdam and FusedLamb are also timed.
FusedLamb runs tensor by tensor, because it has no other mode.

    python benchmarks/optimizer.py [--sizes base large] [--repeats 20]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.common import add_result_options, facts, median_ratio, write_result
from bertds.optim.lamb import ShardedLamb
from bertds.optim.partition import Partition, Slice
from bertds.optim.weight_decay import is_decayed

SIZES = {"tiny": (128, 2), "base": (768, 12), "large": (1024, 24)}


def bert_shapes(hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a BERT's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (30_522, hidden),
        "bert.embeddings.position_embeddings.weight": (512, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
    }

    def dense(name: str, out: int, into: int) -> None:
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[name + ".weight"], shapes[name + ".bias"] = (hidden,), (hidden,)

    norm("bert.embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"bert.encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{prefix}attention.{part}", hidden, hidden)
        norm(prefix + "attention.output.LayerNorm")
        dense(prefix + "intermediate.dense", 4 * hidden, hidden)
        dense(prefix + "output.dense", hidden, 4 * hidden)
        norm(prefix + "output.LayerNorm")
    dense("bert.pooler.dense", hidden, hidden)
    dense("cls.predictions.transform.dense", hidden, hidden)
    norm("cls.predictions.transform.LayerNorm")
    shapes["cls.predictions.bias"] = (30_522,)
    dense("cls.seq_relationship", 2, hidden)
    return shapes


def make_steps(
    shapes: dict[str, tuple[int, ...]], device: str, *, deepspeed: bool = True
) -> dict[str, Callable[[], None]]:
    """Return one function per optimizer that makes a step."""
    generator = torch.Generator().manual_seed(0)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    weights = (torch.randn(total, generator=generator) * 0.02).to(device)
    gradients = (torch.randn(total, generator=generator) * 1e-3).to(device)

    def flat() -> torch.nn.Parameter:
        parameter = torch.nn.Parameter(weights.clone())
        parameter.grad = gradients
        return parameter

    numbers = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
    steps: dict[str, Callable[[], None]] = {
        "torch AdamW fused": torch.optim.AdamW([flat()], fused=True, **numbers).step
    }
    slices, offset = [], 0
    for name, shape in shapes.items():
        length = torch.Size(shape).numel()
        slices.append(Slice(name, 0, offset, length))
        offset += length
    for variant in ("nvidia", "paper"):
        parameter = flat()
        lamb = ShardedLamb([parameter], variant=variant, is_decayed=is_decayed, **numbers)
        lamb.bind([Partition(tensor=parameter, slices=slices)], list(shapes))
        steps[f"bertds Lamb {variant}"] = lamb.step
    if device == "cuda" and deepspeed:
        from deepspeed.ops.adam import FusedAdam
        from deepspeed.ops.lamb import FusedLamb

        steps["DeepSpeed FusedAdam"] = FusedAdam([flat()], **numbers).step
        pieces = []
        for piece in slices:
            part = slice(piece.offset, piece.offset + piece.length)
            pieces.append(torch.nn.Parameter(weights[part].clone()))
            pieces[-1].grad = gradients[part]
        steps["DeepSpeed FusedLamb"] = FusedLamb(pieces, **numbers).step
    return steps


def measure(steps: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list]:
    """Time the optimizers in turn; returns seconds per step of each repeat."""

    def timed(step: Callable[[], None]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(timed(step))
    return times


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base", "large"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument(
        "--no-deepspeed",
        dest="deepspeed",
        action="store_false",
        help="skip DeepSpeed's optimizers, which take minutes to compile",
    )
    add_result_options(parser)
    arguments = parser.parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    result = {**facts("optimizer.py", argv, arguments.note), "device": device, "sizes": {}}
    print(f"{result['machine']}, {result['threads']} threads, load {result['load_average']}")
    for size in arguments.sizes:
        shapes = bert_shapes(*SIZES[size])
        times = measure(
            make_steps(shapes, device, deepspeed=arguments.deepspeed), arguments.repeats, device
        )
        rows = {}
        first = None
        print(
            f"\nBERT-{size}  {'median ms':>24} {'best ms':>10} {'x AdamW (median of ratios)':>28}"
        )
        for name, seconds in times.items():
            first = first or seconds
            ratio = median_ratio(first, seconds)
            median, best = statistics.median(seconds) * 1e3, min(seconds) * 1e3
            rows[name] = {
                "median_ms": round(median, 2),
                "best_ms": round(best, 2),
                "ratio": round(ratio, 2),
                "ratio_of_best": round(min(seconds) / min(first), 2),
            }
            print(f"  {name:<22} {median:>10.1f} {best:>10.1f} {ratio:>28.2f}")
        result["sizes"][size] = rows
    write_result(result, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
