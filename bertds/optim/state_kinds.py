"""The kinds of state that training keeps per tensor, by the names that checkpoints use."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["weight", "exp_avg", "exp_avg_sq", "average"]
"""The float32 master weight, its two moments, and the moving average of the weight."""
KINDS: tuple[Kind, ...] = get_args(Kind)
ALWAYS_KEPT = KINDS[:3]
"""All except the average, which a run keeps only if asked to."""
