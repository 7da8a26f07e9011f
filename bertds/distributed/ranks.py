"""The interface of the processes of a run."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run, as seen from one of them."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """The device of this process's tensors."""

    def global_sums(self, values: list[float]) -> torch.Tensor:
        """Return float64 sums over all ranks, on the device. Collective."""

    def gather_objects(self, value: T) -> list[T]:
        """Return the value of every rank, in the order of ranks. Collective."""
