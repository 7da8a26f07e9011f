"""The gradients that reach the optimizer, and what they must be: one process's, in float64.

Compared before the optimizer makes anything of them: Adam and LAMB hardly notice a gradient of half
its size, so weights would report late, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from tests.support import toy_engine as toy

STEPS = 2
"""A second step, so that what is left over from the first would show."""
LIMITS = {"fp32": 1e-6, "bf16": 2.0**-7}
"""Largest distance of a tensor's gradient, relative to its norm. bf16: one step of its mantissa."""

Gradients = dict[str, torch.Tensor]


def cases(world_size: int, faults: bool) -> list[dict[str, Any]]:
    """All stages, both precisions, 1, 2 and 4 micro batches; and planted faults."""
    kinds = [(0, "fp32"), *((s, p) for s in (1, 2, 3) for p in ("fp32", "bf16"))]
    return [
        case(stage, precision, world_size, micro_batches, fault=fault)
        for fault in ((False, True) if faults else (False,))
        for stage, precision in kinds
        for micro_batches in ((2,) if fault else (1, 2, 4))
    ]


def case(
    stage: int, precision: str, world_size: int, micro_batches: int, *, fault: bool
) -> dict[str, Any]:
    """A case for engine_worker.py; ``fault`` drops the last micro batch's reduction."""
    json_values = toy.values(stage, precision, gradient_clipping=0.0)
    json_values["train_micro_batch_size_per_gpu"] = toy.ROWS // world_size // micro_batches
    name = f"{'fault_' if fault else ''}zero{stage}_{precision}_{world_size}x{micro_batches}"
    return {
        "name": name,
        "values": json_values,
        "precision": precision,
        "world_size": world_size,
        "gradients": True,
        "fault": fault,
    }


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients of each step by name, and the norms; collective."""
    engine = toy.make_engine(case["values"])
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def note(*arguments: Any, **options: Any) -> None:
        """Stands for the optimizer's step, which ZeRO calls once per parameter group."""
        for partition in engine._layout.partitions:
            if partition.tensor.grad is None:
                continue
            assert partition.tensor.grad.dtype == torch.float32
            flat = partition.tensor.grad.detach().view(-1)
            for piece in partition.slices:
                part = flat[piece.offset : piece.offset + piece.length]
                seen[piece.name, piece.start] = part.clone()

    engine._updates._update = note  # no weight changes: every step is compared at the same weights
    if case["fault"]:
        drop_last_reduction(engine)
    steps, norms = [], []
    for step in range(STEPS):
        seen.clear()
        assert toy.train(engine, step, step + 1)[1] == [True]
        norms.append(engine.gradient_norm())
        steps.append(together(engine.gather_objects(seen), toy.parameter_sizes(engine)))
    engine.close()
    return {"steps": steps, "norms": norms}


def together(shares: list[dict[tuple[str, int], torch.Tensor]], sizes: dict) -> Gradients:
    """Put the ranks' pieces together; NaN where none has any, or two (at stage 0) differ."""
    whole = {n: torch.full((size,), float("nan")) for n, size in sizes.items() if n != "scale"}
    for number, share in enumerate(shares):
        for (name, start), part in share.items():
            place = whole[name][start : start + len(part)]
            differ = ~place.isnan() & (place != part)
            place.copy_(torch.where(differ, torch.nan, part) if number else part)
    return whole


def gradient(model: toy.Toy, batch: toy.Batch, tokens: int, factor: int = 1) -> Gradients:
    """Return a batch's share of the gradient of the global batch's mean losses, in float64."""
    model.zero_grad()
    output = model(*batch[:4])
    loss = output.mlm_loss_sum / tokens + output.nsp_loss_sum / toy.ROWS
    (loss * factor).backward()
    return {n: p.grad.double().view(-1) for n, p in model.named_parameters() if p.requires_grad}


@functools.cache
def exact(step: int) -> Gradients:
    """Return the gradient of one process in float64."""
    batch = toy.rows_of(step, 0, toy.ROWS)
    return gradient(toy.Toy().double(), batch, len(batch.masked_lm_ids))


@functools.cache
def summed(step: int, world_size: int, micro_batch: int) -> Gradients:
    """Return bf16's gradients of all micro batches, of all ranks, added up in float64."""
    tokens = len(toy.rows_of(step, 0, toy.ROWS).masked_lm_ids)
    model, total = toy.Toy().bfloat16(), {}
    for first in range(0, toy.ROWS, micro_batch):
        batch = toy.rows_of(step, first, first + micro_batch)
        # Each rank's loss is larger by this factor, because the ranks' gradients are averaged.
        for name, part in gradient(model, batch, tokens, world_size).items():
            total[name] = total.get(name, 0.0) + part / world_size
    return total


def norm(gradients: Gradients) -> float:
    return float(torch.cat([part.double() for part in gradients.values()]).norm())


def distance(found: Gradients, want: Gradients) -> float:
    """Return the largest distance of a tensor's two gradients, relative to its norm."""
    assert found.keys() == want.keys()
    distances = [float((found[n].double() - w).norm() / w.norm()) for n, w in want.items()]
    return math.inf if any(math.isnan(d) for d in distances) else max(distances)


def deviation(case: dict[str, Any], found: dict[str, Any]) -> float:
    """Return how far a case's gradients, and their norms, are from what they must be.

    In bf16 that is the sum of the micro batches' own gradients: what reduction and accumulation
    make of them is theirs alone, and a sum kept in bf16 would show.
    """
    micro_batch = case["values"]["train_micro_batch_size_per_gpu"]
    worst = 0.0
    for step, (gradients, its_norm) in enumerate(zip(found["steps"], found["norms"], strict=True)):
        want = exact(step)
        if case["precision"] == "bf16":
            want = summed(step, case["world_size"], micro_batch)
        worst = max(worst, distance(gradients, want), abs(its_norm / norm(want) - 1.0))
    return worst


def distance_from_float64(found: dict[str, Any]) -> float:
    """Return the largest distance of a tensor's gradient from float64's, in any precision."""
    return max(distance(gradients, exact(step)) for step, gradients in enumerate(found["steps"]))


def drop_last_reduction(engine: Any) -> None:
    """Plant DeepSpeed 0.18.6's fault: the last micro batch's gradients are not reduced."""
    backward = engine._engine.backward

    def faulty(*arguments: Any, **options: Any) -> Any:
        if not engine._engine.is_gradient_accumulation_boundary():
            return backward(*arguments, **options)
        with silent_reductions():
            return backward(*arguments, **options)

    engine._engine.backward = faulty


@contextlib.contextmanager
def silent_reductions() -> Iterator[None]:
    """Let every reduction over the ranks return without having done anything."""
    from deepspeed.comm import comm

    names = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")

    def nothing(*arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(wait=lambda: None)

    for name in names:
        setattr(comm.cdb, name, nothing)
    try:
        yield
    finally:
        for name in names:
            delattr(comm.cdb, name)
