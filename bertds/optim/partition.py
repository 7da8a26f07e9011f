"""Which pieces of named tensors are in the flat vector that an optimizer updates.

ZeRO divides the concatenation of all tensors into equal parts, one per rank, regardless of where a
tensor begins or ends. A :class:`Partition` is such a part, with the list of the tensor pieces in
it; what no piece covers is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of one tensor: elements ``start ... start + length`` of the tensor, flattened."""

    name: str
    """The parameter's name in the model."""
    start: int
    """Offset of the piece in the flattened tensor."""
    offset: int
    """Offset of the piece in the partition."""
    length: int
    """Number of elements."""


@dataclass(slots=True)
class Partition:
    """A flat tensor of float32 master weights that this rank updates, and the pieces in it."""

    tensor: torch.Tensor
    """The tensor that the optimizer holds (and keys its state by); contiguous."""
    slices: list[Slice]
    """Ascending by offset, not overlapping; the rest of the tensor is padding."""
    group: ProcessGroup | None = None
    """The process group that the tensors are divided over; None if this rank holds them whole."""

    def __post_init__(self) -> None:
        end = 0
        for piece in self.slices:
            if piece.offset < end or piece.length < 1:
                raise RuntimeError(f"overlapping or empty piece {piece} in a partition")
            end = piece.offset + piece.length
        if end > self.tensor.numel():
            raise RuntimeError(f"pieces reach {end}, the partition has {self.tensor.numel()}")

    def flat(self) -> torch.Tensor:
        """Return the master weights as a vector that shares their memory."""
        return self.tensor.detach().view(-1)
