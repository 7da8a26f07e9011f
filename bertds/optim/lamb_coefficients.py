"""The scalars of one LAMB step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """The coefficients of one step. u = first * m / (sqrt(second * v) + eps) + decay * w."""

    beta1: float
    beta2: float
    first: float
    """1 / (1 - beta1 ** t), or 1."""
    second: float
    """1 / (1 - beta2 ** t), or 1."""
    eps: float
    decay: float
    step_size: float
    """Learning rate, times the bias correction if the variant applies it here."""

    @classmethod
    def of(
        cls, group: Mapping[str, Any], step: int, variant: str, bias_correction: bool
    ) -> StepNumbers:
        """Compute the coefficients of step number ``step`` (1 for the first)."""
        beta1, beta2 = group["betas"]
        first = second = 1.0
        step_size = float(group["lr"])
        if bias_correction and variant == "deepspeed":
            # As in fused_lamb_cuda: the correction is not part of the update whose norm is taken.
            step_size *= math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
        elif bias_correction:
            first, second = 1.0 / (1.0 - beta1**step), 1.0 / (1.0 - beta2**step)
        return cls(beta1, beta2, first, second, group["eps"], group["weight_decay"], step_size)
