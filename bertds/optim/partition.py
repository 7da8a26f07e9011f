"""Where the pieces of named tensors are in one flat vector that an optimizer updates.

ZeRO cuts the concatenation of all tensors into equal parts, one per rank, without regard to where
a tensor begins or ends. A :class:`Partition` is such a part together with the list of tensor
pieces that it holds; whatever no piece covers is padding.
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
    """A flat tensor of float32 master weights that this rank updates, and what is in it."""

    tensor: torch.Tensor
    """The tensor that the optimizer holds (and keys its state by); contiguous."""
    slices: list[Slice]
    """Ascending by offset, not overlapping; the rest of the tensor is padding."""
    group: ProcessGroup | None = None
    """The process group over which the tensors are cut; None if this rank holds them whole."""

    def __post_init__(self) -> None:
        end = 0
        for piece in self.slices:
            if piece.offset < end or piece.length < 1:
                raise RuntimeError(f"overlapping or empty piece {piece} in a partition")
            end = piece.offset + piece.length
        if end > self.tensor.numel():
            raise RuntimeError(f"pieces reach {end}, the partition has {self.tensor.numel()}")

    def flat(self) -> torch.Tensor:
        """Return the master weights as a vector over the same memory."""
        return self.tensor.detach().view(-1)
