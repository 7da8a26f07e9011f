"""LAMB, tensor by tensor, written from the paper and from DeepSpeed's CUDA file. In float64."""

from __future__ import annotations

import math

import torch


class TextbookLamb:
    def __init__(
        self,
        named,
        *,
        lr,
        betas,
        eps,
        weight_decay,
        variant="nvidia",
        bias_correction=True,
        low=0.0,
        high=math.inf,
    ):
        self.named = dict(named)
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, weight_decay
        self.variant, self.bias_correction, self.low, self.high = (
            variant,
            bias_correction,
            low,
            high,
        )
        self.t = 0
        self.m = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.named.items()}
        self.v = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.named.items()}
        self.ratios: dict[str, float] = {}

    @torch.no_grad()
    def step(self, gradients: dict[str, torch.Tensor]) -> None:
        # LAMB, Algorithm 2 (arXiv:1904.00962)
        self.t += 1
        beta1, beta2 = self.betas
        for name, x in self.named.items():
            g = gradients[name].double()
            m, v = self.m[name], self.v[name]
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * g * g)
            decayed = not (name.endswith("bias") or "LayerNorm" in name)
            decay = self.decay if decayed else 0.0
            lr = self.lr
            if self.variant == "deepspeed":
                update = m / (v.sqrt() + self.eps) + decay * x.double()
                if self.bias_correction:
                    lr = lr * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
            else:
                c1 = 1 - beta1**self.t if self.bias_correction else 1.0
                c2 = 1 - beta2**self.t if self.bias_correction else 1.0
                r = (m / c1) / ((v / c2).sqrt() + self.eps)
                update = r + decay * x.double()
            ratio = 1.0
            if self.variant != "nvidia" or decayed:
                weight_norm = float(x.double().norm())
                update_norm = float(update.norm())
                if weight_norm > 0 and update_norm > 0:
                    ratio = min(max(weight_norm / update_norm, self.low), self.high)
                self.ratios[name] = ratio
            x.sub_((lr * ratio * update).to(x.dtype))


class TextbookMuon:
    """Muon (Jordan et al. 2024), decay and scale of arXiv:2502.16982; AdamW for the rest."""

    def __init__(self, named, *, lr, betas, eps, weight_decay, momentum=0.95, ns_steps=5):
        self.named = dict(named)
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, weight_decay
        self.momentum, self.ns_steps = momentum, ns_steps
        self.t = 0
        self.m = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.named.items()}
        self.v = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.named.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, torch.Tensor]) -> None:
        self.t += 1
        for name, x in self.named.items():
            g = gradients[name].double().view(x.shape)
            decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else self.decay
            m, v = self.m[name].view(x.shape), self.v[name].view(x.shape)
            if name.endswith(("dense.weight", "transform.weight")):
                m.copy_(self.momentum * m + g)
                update = 0.2 * max(x.shape) ** 0.5 * self.polar(g + self.momentum * m)
            else:
                beta1, beta2 = self.betas
                m.copy_(beta1 * m + (1 - beta1) * g)
                v.copy_(beta2 * v + (1 - beta2) * g * g)
                root = (v / (1 - beta2**self.t)).sqrt() + self.eps
                update = m / (1 - beta1**self.t) / root
            x.copy_((1 - self.lr * decay) * x - self.lr * update)

    def polar(self, u: torch.Tensor) -> torch.Tensor:
        """Through the singular values: the same polynomial applied to each of them."""
        left, values, right = torch.linalg.svd(u, full_matrices=False)
        values = values / (values.norm() + 1e-7)
        for _ in range(self.ns_steps):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return left @ values.diag() @ right
