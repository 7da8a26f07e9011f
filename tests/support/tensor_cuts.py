"""Tensors cut into partitions, given gradients, and the textbook's answer to them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from bertds.optim.lamb import ShardedLamb
from bertds.optim.partition import Partition, Slice
from bertds.optim.weight_decay import is_decayed
from tests.support.textbook_optimizers import TextbookLamb

Shapes = dict[str, tuple[int, ...]]

SHAPES: Shapes = {
    "emb.weight": (37, 11),
    "emb.LayerNorm.weight": (11,),
    "dense.weight": (300, 101),  # more than one block of the compiled loops
    "dense.bias": (300,),
    "zero.weight": (5, 3),
    "last.bias": (1,),
}
NUMBERS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
CLAMP = {"nvidia": {}, "paper": {}, "deepspeed": {"low": 0.01, "high": 10.0}}


def random_tensors(seed: int, shapes: Shapes = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def start_weights(shapes: Shapes = SHAPES) -> dict[str, torch.Tensor]:
    made = random_tensors(0, shapes)
    made["zero.weight"].zero_()
    return made


def partitions_of(
    weights: dict[str, torch.Tensor], cuts: list[int], padding: int = 3, device: str = "cpu"
) -> list[Partition]:
    """The concatenated tensors, cut at ``cuts``; each part ends in garbage as padding."""
    flat = torch.cat([w.reshape(-1) for w in weights.values()])
    edges = [0, *sorted(cuts), len(flat)]
    parts = []
    for low, high in itertools.pairwise(edges):
        slices, start = [], 0
        for name, weight in weights.items():
            end = start + weight.numel()
            first, last = max(low, start), min(high, end)
            if first < last:
                slices.append(Slice(name, first - start, first - low, last - first))
            start = end
        garbage = torch.full((padding,), float("nan"))
        tensor = torch.nn.Parameter(torch.cat([flat[low:high], garbage]).to(device))
        parts.append(Partition(tensor=tensor, slices=slices))
    return parts


def train(
    parts: list[Partition], optimizer: ShardedLamb, steps: int, shapes: Shapes = SHAPES
) -> dict[str, torch.Tensor]:
    for step in range(steps):
        gradients = random_tensors(100 + step, shapes)
        for part in parts:
            grad = torch.full_like(part.tensor, float("nan"))
            for piece in part.slices:
                values = gradients[piece.name].reshape(-1)[piece.start : piece.start + piece.length]
                grad[piece.offset : piece.offset + piece.length] = values
            part.tensor.grad = grad
        optimizer.step()
    result = {name: torch.zeros(shape).reshape(-1) for name, shape in shapes.items()}
    for part in parts:
        for piece in part.slices:
            values = part.flat()[piece.offset : piece.offset + piece.length]
            result[piece.name][piece.start : piece.start + piece.length] = values
    return result


def make(
    parts: list[Partition],
    variant: str,
    *,
    kernels: Any = None,
    shapes: Shapes = SHAPES,
    **more: Any,
) -> ShardedLamb:
    clamp = CLAMP[variant]
    more.setdefault("min_coeff", clamp.get("low", 0.0))
    more.setdefault("max_coeff", clamp.get("high", math.inf))
    optimizer = ShardedLamb(
        [part.tensor for part in parts], variant=variant, is_decayed=is_decayed, **NUMBERS, **more
    )
    optimizer.bind(parts, list(shapes), kernels=kernels)
    return optimizer


def textbook(
    variant: str, steps: int, shapes: Shapes = SHAPES, **more: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the weights after some steps, and the last trust ratios; all in float64."""
    weights = {name: w.double() for name, w in start_weights(shapes).items()}
    reference = TextbookLamb(
        weights.items(), variant=variant, **NUMBERS, **{**CLAMP[variant], **more}
    )
    for step in range(steps):
        reference.step({n: g.double() for n, g in random_tensors(100 + step, shapes).items()})
    return weights, reference.ratios


def distance(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    return max(
        float((found[n].double() - w.reshape(-1)).norm() / w.norm()) for n, w in want.items()
    )
