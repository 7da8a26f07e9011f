"""The training state by parameter name: what a checkpoint writes and a resume reads.

A piece is a range of one tensor's master weights, of one of its moments, or of the moving average
of its weights, if the run keeps one. The pieces of all ranks together cover every tensor exactly
once. Nothing in a piece depends on ranks, partitions or ZeRO stages, so any other run can be
restored from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from bertds.engine.weight_average import WeightAverage
from bertds.engine.zero_layout import (
    DeepSpeedObject,
    Layout,
    frozen_pieces,
    frozen_targets,
    refresh_weights,
)
from bertds.optim.moments import set_steps
from bertds.optim.partition import Partition
from bertds.optim.state_kinds import ALWAYS_KEPT, Kind

Reader = Callable[[str, str, int, int], torch.Tensor]
"""read(name, kind, start, length) -> float32 tensor [length]."""


class Piece(NamedTuple):
    """A range of one tensor's state."""

    name: str
    """The parameter's name in the model."""
    kind: Kind
    """weight (float32 master), a moment, or the average of the weight."""
    start: int
    """Offset in the flattened tensor."""
    tensor: torch.Tensor
    """1-D float32 view of live state (a copy, for a frozen low-precision weight)."""


def _state(optimizer: torch.optim.Optimizer, partition: Partition, kind: str) -> torch.Tensor:
    if kind == "weight":
        return partition.flat()
    return optimizer.state[partition.tensor][kind].view(-1)


def _owners(layout: Layout, world_size: int) -> dict[str, int]:
    """Assign whole tensors to ranks at stage 0, where each holds all: largest first, evenly."""
    load = [0] * world_size
    owners = {}
    for name in sorted(layout.numels, key=lambda name: (-layout.numels[name], name)):
        rank = min(range(world_size), key=load.__getitem__)
        owners[name] = rank
        load[rank] += layout.numels[name]
    return owners


def collect_pieces(
    layout: Layout,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    rank: int,
    world_size: int,
) -> list[Piece]:
    """Return this rank's pieces, in the order of partitions and slices."""
    owners = _owners(layout, world_size) if layout.kind == "stage0" else None
    pieces = []
    for number, partition in enumerate(layout.partitions):
        vectors = [(kind, _state(optimizer, partition, kind)) for kind in ALWAYS_KEPT]
        if average is not None:
            vectors.append(("average", average.vectors[number]))
        for kind, vector in vectors:
            for piece in partition.slices:
                if owners is None or owners[piece.name] == rank:
                    part = vector[piece.offset : piece.offset + piece.length]
                    pieces.append(Piece(piece.name, kind, piece.start, part))
    # Frozen parameters have no moments and may be in low precision.
    for name, start, vector in frozen_pieces(layout, rank, world_size):
        pieces.append(Piece(name, "weight", start, vector.float()))
    return pieces


@torch.no_grad()
def restore_pieces(
    engine: DeepSpeedObject,
    layout: Layout,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    read: Reader,
    *,
    rank: int,
    optimizer_steps: int,
    moments: bool,
    averaged: bool,
) -> None:
    """Write masters (and moments) on this rank, then refresh the weights. Collective.

    Args:
        engine: the DeepSpeed engine.
        layout: where things are on this rank.
        optimizer: the optimizer that owns the moments.
        average: the moving average of the weights, if the run keeps one.
        read: returns a range of a tensor's state; see :data:`Reader`.
        rank: this rank.
        optimizer_steps: number of updates that the moments have seen.
        moments: False sets moments and counters to zero.
        averaged: False starts the average from the weights.
    """
    # Padding between the pieces is left as it is: no tensor contains it.
    for partition in layout.partitions:
        for kind in ALWAYS_KEPT:
            vector = _state(optimizer, partition, kind)
            if kind != "weight" and not moments:
                vector.zero_()
                continue
            for piece in partition.slices:
                values = read(piece.name, kind, piece.start, piece.length)
                vector[piece.offset : piece.offset + piece.length].copy_(values.view(-1))
    for name, start, vector in frozen_targets(layout, rank):
        vector.copy_(read(name, "weight", start, vector.numel()).view(-1))
    # The average starts from the restored weights, so it comes after them.
    steps = optimizer_steps if moments else 0
    if average is not None:
        average.begin()
        for partition, vector in zip(layout.partitions, average.vectors, strict=True):
            for piece in partition.slices if averaged else ():
                values = read(piece.name, "average", piece.start, piece.length)
                vector[piece.offset : piece.offset + piece.length].copy_(values.view(-1))
    set_steps(optimizer, [partition.tensor for partition in layout.partitions], steps)
    # The model still computes with the old weights until the masters are copied to them.
    refresh_weights(engine, layout)
