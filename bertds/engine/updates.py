"""Makes the optimizer's update of a step, or skips it, in the same way at every ZeRO stage.

An update is skipped if a gradient is not finite, or if the gradient norm exceeds a limit. The ZeRO
wrappers compute the norm, clip and update in one call. The optimizer that they call is ours, so the
limit is checked there: after the norm is known and before a weight changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from bertds.engine.zero_layout import (
    DeepSpeedObject,
    Layout,
    drop_gradients,
    norm_under_way,
)
from bertds.optim.gradient_norm import clip_gradients, global_norm


class Updates:
    """Wraps the ``step`` of DeepSpeed's engine and that of our optimizer.

    Args:
        engine: the DeepSpeed engine.
        optimizer: ours, which the engine wraps.
        layout: where the gradients are.
        clipping: the gradient norm at which gradients are clipped; 0 = never.
        device: where the ranks exchange the norm.
    """

    def __init__(
        self,
        engine: DeepSpeedObject,
        optimizer: torch.optim.Optimizer,
        layout: Layout,
        clipping: float,
        device: torch.device,
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._clipping = clipping
        self._device = device
        self.norm: float | torch.Tensor | None = None
        """The global gradient norm of the last step before clipping; inf if it was not finite."""
        self._begin(math.inf)
        self._update: Callable[..., object] = optimizer.step
        optimizer.step = self._update_or_skip  # type: ignore[method-assign, assignment]

    def make(self, norm_limit: float) -> bool:
        """Update the weights from the accumulated gradients. Collective.

        Args:
            norm_limit: skip the update if the gradient norm before clipping exceeds it; infinity
                disables the check and costs nothing.

        Returns:
            Whether an update was made.
        """
        self._begin(norm_limit)
        if self._layout.kind == "stage0":
            finite = self._step_unsharded()
        else:
            self._engine.step()
            finite = self._engine.was_step_applied()
            self.norm = self._engine.get_global_grad_norm()
        if not finite:
            self.norm = math.inf
            drop_gradients(self._engine, self._layout)
        applied = finite and not self._over_limit
        self._begin(math.inf)
        return applied

    def _begin(self, norm_limit: float) -> None:
        self._norm_limit, self._decided, self._over_limit = norm_limit, False, False

    def _step_unsharded(self) -> bool:
        # ZeRO's wrappers check, clip and skip. At stage 0 DeepSpeed calls the optimizer directly
        # and would apply a NaN.
        parameters = [partition.tensor for partition in self._layout.partitions]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.norm = norm = global_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._engine.zero_grad()
            self._engine.micro_steps += 1
            return False
        if self._clipping > 0.0:
            clip_gradients(gradients, norm, self._clipping)
        self._engine.step()
        return True

    def _update_or_skip(self, *arguments: object, **options: object) -> object:
        # ZeRO calls this once per parameter group; the first call decides for all groups.
        if not self._decided:
            self._decided = True
            self._over_limit = self._norm_limit < math.inf and self._exceeds_limit()
        if self._over_limit:
            return None
        return self._update(*arguments, **options)

    def _exceeds_limit(self) -> bool:
        stage0 = self._layout.kind == "stage0"
        found = (self.norm if stage0 else norm_under_way(self._engine)) or 0.0
        norm = torch.tensor(float(found), dtype=torch.float64, device=self._device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            # The ranks' norms may differ in the last bit, but all ranks must decide alike.
            dist.all_reduce(norm, op=dist.ReduceOp.MAX)
        return not float(norm) <= self._norm_limit  # True for NaN too
