"""The same training in plain torch, whole batch at once, one process: what an engine must equal."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.textbook_optimizers import TextbookLamb, TextbookMuon
from tests.support.toy_engine import ROWS, State, Toy, learning_rate, rows_of

LAMBS: dict[str, dict[str, Any]] = {
    "nvidia": {},
    "paper": {},
    "deepspeed": {"low": 0.01, "high": 10.0},
}


def train_reference(
    steps: int,
    optimizer: str,
    *,
    clip: float = 0.5,
    eps: float = 1e-6,
    weight_decay: float = 0.05,
    bias_correction: bool = True,
    skip: tuple[int, ...] = (),
) -> tuple[State, list[float], dict[str, float], list[float]]:
    """Train a Toy in float64.

    Returns:
        Weights and moments, losses, the last trust ratios, gradient norms before clipping.
    """
    model = Toy().double()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = {"betas": (0.9, 0.99), "eps": eps, "weight_decay": weight_decay}
    lamb = adam = None
    if optimizer == "Muon":
        lamb = TextbookMuon(named, lr=0.0, **numbers)
    elif optimizer in LAMBS:
        lamb = TextbookLamb(
            named,
            lr=0.0,
            variant=optimizer,
            bias_correction=bias_correction,
            **numbers,
            **LAMBS[optimizer],
        )
    else:
        decayed = [p for n, p in named.items() if not n.endswith("bias") and "Norm" not in n]
        rest = [p for n, p in named.items() if n.endswith("bias") or "Norm" in n]
        groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        adam = getattr(torch.optim, optimizer)(groups, lr=0.0, **numbers)
    losses, norms = [], []
    for step in range(steps):
        batch = rows_of(step, 0, ROWS)
        output = model(*batch[:4])
        loss = output.mlm_loss_sum / len(batch.masked_lm_ids) + output.nsp_loss_sum / ROWS
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), clip or float("inf"))))
        if step in skip:
            continue
        if lamb is not None:
            lamb.lr = learning_rate(step)
            lamb.step({name: p.grad for name, p in named.items()})
        else:
            for group in adam.param_groups:
                group["lr"] = learning_rate(step)
            adam.step()
    state: State = {("scale", "weight"): model.scale.detach().view(-1)}
    for name, p in named.items():
        state[name, "weight"] = p.detach().view(-1)
        state[name, "exp_avg"] = (lamb.m[name] if lamb else adam.state[p]["exp_avg"]).view(-1)
        state[name, "exp_avg_sq"] = (lamb.v[name] if lamb else adam.state[p]["exp_avg_sq"]).view(-1)
    return state, losses, dict(getattr(lamb, "ratios", {})), norms
