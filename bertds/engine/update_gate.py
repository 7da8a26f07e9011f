"""Skips an update when the gradient norm exceeds a limit.

The ZeRO wrappers compute the norm, clip and update in one call. The optimizer that they call is
ours, so the decision is made there: after the norm is known and before a weight changes, in the
same way at every stage.
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
        norm: returns the global gradient norm of the step in progress, before clipping.
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
        """Whether the last update was skipped."""
        optimizer.step = self._step  # type: ignore[method-assign, assignment]

    def begin(self, limit: float) -> None:
        """Set the limit of the next step; infinity disables the check and costs nothing."""
        self._limit, self._decided, self.held = limit, False, False

    def _step(self, *arguments: object, **options: object) -> object:
        # ZeRO calls this once per parameter group; the first call decides for all groups.
        if not self._decided:
            self._decided = True
            self.held = self._limit < math.inf and self._over_limit()
        if self.held:
            return None
        return self._update(*arguments, **options)

    def _over_limit(self) -> bool:
        norm = torch.tensor(float(self._norm() or 0.0), dtype=torch.float64, device=self._device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            # The ranks' norms may differ in the last bit, but all ranks must decide alike.
            dist.all_reduce(norm, op=dist.ReduceOp.MAX)
        return not float(norm) <= self._limit  # True for NaN too
