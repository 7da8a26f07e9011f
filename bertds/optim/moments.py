"""Uniform access to the moments and step counters that Adam-like optimizers keep.

torch counts steps in a tensor per parameter. DeepSpeed's CPU Adam and our LAMB use an int per
parameter, DeepSpeed's FusedAdam an int per parameter that starts from its group's. All keep
``exp_avg`` and ``exp_avg_sq``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def create_moments(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> None:
    """Give ``tensor`` zero moments and a zero step counter, unless it has them.

    Optimizers do this in their first step. Doing it at once makes a checkpoint of step 0, and a
    load into a new engine, ordinary cases.
    """
    state = optimizer.state[tensor]
    if state:
        return
    if type(optimizer).__module__.startswith("torch.optim"):
        fused = bool(optimizer.defaults.get("fused"))
        # torch's fused optimizers need the counter on the device of the parameter.
        state["step"] = torch.zeros((), device=tensor.device if fused else "cpu")
    else:
        state["step"] = 0
    for moment in MOMENTS:
        state[moment] = torch.zeros_like(tensor, requires_grad=False)


def count_steps(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> int:
    """Return the number of updates that the moments have seen (the bias correction's t)."""
    return max((int(optimizer.state[tensor]["step"]) for tensor in tensors), default=0)


def set_steps(
    optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor], steps: int
) -> None:
    """Set every step counter."""
    for tensor in tensors:
        state = optimizer.state[tensor]
        if torch.is_tensor(state["step"]):
            state["step"].fill_(float(steps))
        else:
            state["step"] = steps
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = steps
