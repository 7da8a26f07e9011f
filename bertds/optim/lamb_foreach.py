"""LAMB's two passes as torch's multi-tensor operations: for GPUs, and as a second opinion.

Nothing here waits for the device: sums and ratios stay tensors. torch's fused Adam kernel makes
both moments and the Adam part of the update in one pass: it steps a vector of zeros, with a
learning rate of -1. With what LAMB adds, 18 streams go through memory where Adam moves 7.
"""

from __future__ import annotations

import torch

from bertds.optim.lamb_coefficients import StepNumbers
from bertds.optim.partition import Partition


class ForeachLamb:
    """LAMB's arithmetic on one partition; see :class:`bertds.optim.lamb_cpu.CpuLamb`."""

    def __init__(
        self,
        partition: Partition,
        index: dict[str, int],
        decayed: list[bool],
        adapted: list[bool],
    ) -> None:
        self.partition = partition
        device = partition.tensor.device
        tensors = [index[piece.name] for piece in partition.slices]
        self._ranges = [(piece.offset, piece.length) for piece in partition.slices]
        self._decayed = [i for i, tensor in enumerate(tensors) if decayed[tensor]]
        self._adapted = [i for i, tensor in enumerate(tensors) if adapted[tensor]]
        self._tensors = torch.tensor(
            [tensors[i] for i in self._adapted], dtype=torch.int64, device=device
        )
        self._number_of_tensors = len(index)

    def _cut(self, vector: torch.Tensor, which: list[int]) -> list[torch.Tensor]:
        return [vector.narrow(0, *self._ranges[i]) for i in which]

    def update_moments(
        self, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, numbers: StepNumbers
    ) -> torch.Tensor:
        """Pass 1. Returns float64 [2, tensors]: this partition's sums of w*w and u*u."""
        w, g = self.partition.flat(), gradient.detach().reshape(-1)
        m, v = m.view(-1), v.view(-1)
        u = torch.zeros_like(w)
        # beta ** infinity is 0: the kernel then corrects nothing.
        step = torch.full((), float(numbers.step), dtype=torch.float32, device=w.device)
        torch._fused_adam_(
            [u], [g], [m], [v], [], [step], lr=-1.0, beta1=numbers.beta1, beta2=numbers.beta2,
            weight_decay=0.0, eps=numbers.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        if numbers.decay and self._decayed:
            torch._foreach_add_(
                self._cut(u, self._decayed), self._cut(w, self._decayed), alpha=numbers.decay
            )
        self._u = u
        sums = torch.zeros(2, self._number_of_tensors, dtype=torch.float64, device=w.device)
        if self._adapted:
            parts = self._cut(w, self._adapted) + self._cut(u, self._adapted)
            norms = torch.stack(torch._foreach_norm(parts)).double().square_().view(2, -1)
            sums.index_add_(1, self._tensors, norms)
        return sums

    def apply(self, ratios: torch.Tensor, numbers: StepNumbers) -> None:
        """Pass 2: w <- w - step size * ratio * u."""
        u = self._u
        del self._u
        if self._adapted:
            ratios = ratios.to(u.device, non_blocking=True)
            factors = ratios[self._tensors].to(torch.float32)
            torch._foreach_mul_(self._cut(u, self._adapted), list(factors.unbind()))
        self.partition.flat().add_(u, alpha=-numbers.step_size)
