"""LAMB on slices of flat partitions (first, plain version)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from bertds.optim.slices import Partition


class ShardedLamb(torch.optim.Optimizer):
    """LAMB; see the module."""

    def __init__(
        self,
        params,
        *,
        lr,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        variant="nvidia",
        bias_correction=True,
        min_coeff=0.0,
        max_coeff=math.inf,
        is_decayed: Callable[[str], bool],
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.variant = variant
        self.bias_correction = bias_correction
        self.min_coeff, self.max_coeff = min_coeff, max_coeff
        self.is_decayed = is_decayed

    def bind(self, partitions: list[Partition], names: list[str]) -> None:
        """Tell the optimizer what lies where."""

    def step(self, closure=None):
        raise RuntimeError("later")
