"""Holds an update back when the gradient norm is over a limit.

The ZeRO wrappers compute the norm, clip and update in one call. The optimizer that they call is
ours, so the decision is there: between the norm and the first change of a weight, at every
stage alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist


class UpdateGate:
    """Wraps an optimizer's ``step``.

    Args:
        optimizer: whose ``step`` is guarded.
        norm: returns the global gradient norm of the step under way, before clipping.
        device: where the ranks exchange the norm.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        norm: Callable[[], float | torch.Tensor | None],
        device: torch.device,
    ) -> None:
        self._update: Callable[..., object] = optimizer.step
        self._norm = norm
        self._device = device
        self._limit = math.inf
        self._decided = False
        self.held = False
        """Whether the last step was held back."""
        optimizer.step = self._step  # type: ignore[method-assign, assignment]

    def begin(self, limit: float) -> None:
        """Set the limit of the next step; infinity lets everything pass and costs nothing."""
        self._limit, self._decided, self.held = limit, False, False

    def _step(self, *arguments: object, **options: object) -> object:
        # ZeRO calls this once per parameter group: decided once, for all groups.
        if not self._decided:
            self._decided = True
            self.held = self._limit < math.inf and self._over_limit()
        if self.held:
            return None
        return self._update(*arguments, **options)

    def _over_limit(self) -> bool:
        norm = torch.tensor(float(self._norm() or 0.0), dtype=torch.float64, device=self._device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            # The ranks' norms may differ in the last bit, and all must decide alike.
            dist.all_reduce(norm, op=dist.ReduceOp.MAX)
        return not float(norm) <= self._limit
