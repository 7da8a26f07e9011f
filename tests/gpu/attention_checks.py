"""What must hold of attention and dropout on a GPU; part of ``checks.py``."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from bertds.model.attention_kernels import attend, choose_kernel
from bertds.model.dropout import dropout_add
from bertds.model.row_layout import arrange


def half(device: str) -> torch.dtype:
    """The type in which a device's own attention kernel is tried."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def attention_equals_padded(device: str, folder: Path) -> None:
    """Output and gradient of the device's kernel, without dropout; in each type that it takes."""
    starts = torch.tensor([0, 40, 80, 107, 116], dtype=torch.int32, device=device)
    for dtype in (torch.bfloat16, torch.float16) if device == "cuda" else (torch.float32,):
        kernel = choose_kernel("auto", torch.device(device), dtype, 32)
        assert kernel == ("flash" if device == "cuda" else "grouped")
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(116, 3, 2, 32, generator=generator).to(device, dtype)
        upstream = torch.randn(116, 2, 32, generator=generator).to(device, dtype)
        found = []
        for name in (kernel, "padded"):
            qkv = values.clone().requires_grad_()
            output = attend(*qkv.unbind(1), arrange(starts, 40, name).layout, 0.0)
            output.backward(upstream)
            found.append((output.detach().float(), qkv.grad.float()))
        limit = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
        for ours, theirs in zip(*found, strict=True):
            apart = float((ours - theirs).norm() / theirs.norm())
            assert apart < limit, f"{kernel} and padded are {apart:.1e} apart in {dtype}"


def attention_dropout_has_its_rate_and_follows_the_seed(device: str, folder: Path) -> None:
    """Equal scores and unit values show each weight's fate: 0, or 1 / (length (1 - p))."""
    length, rows, p = 64, 32, 0.1
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
    layout = arrange(starts, length, choose_kernel("auto", torch.device(device), half(device), 64))
    qkv = torch.zeros(rows * length, 3, 1, 64, device=device, dtype=half(device))
    qkv[:, 2, 0] = torch.eye(length, device=device, dtype=half(device)).repeat(rows, 1)
    qkv.requires_grad_()

    def masks(seed: int) -> Tensor:
        torch.manual_seed(seed)
        output = attend(*qkv.unbind(1), layout.layout, p)
        [gradient] = torch.autograd.grad(output.sum(), qkv)
        weights = output.detach().float().view(rows, length, length)
        # What the backward pass dropped: a value's gradient is the sum of its weights.
        sums = gradient[:, 2, 0, 0].float().view(rows, length)
        torch.testing.assert_close(sums, weights.sum(1), rtol=3e-2, atol=3e-2)
        return weights

    first, again, other = masks(5), masks(5), masks(6)
    assert torch.equal(first, again), "one seed, two masks"
    assert not torch.equal(first, other), "two seeds, one mask"
    dropped = float((first == 0).float().mean())
    deviation = math.sqrt(p * (1 - p) / first.numel())
    assert abs(dropped - p) < 5 * deviation + 1e-3, f"{dropped:.4f} were dropped instead of {p}"
    kept = first[first > 0]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (length * (1 - p))), rtol=1e-2, atol=0
    )
    assert not (masks(5) == 0).all(2).any()  # no row loses everything: masks differ by column
    assert not torch.equal(first[0], first[1]), "two rows, one mask"


def hidden_dropout_has_its_rate_and_follows_the_seed(device: str, folder: Path) -> None:
    """Of the sum with the residual, which is left as it is."""
    ones = torch.ones(400, 512, device=device, dtype=half(device))
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(dropout_add(ones, 2 * ones, 0.1, True).float())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    dropped = float((draws[0] == 2).float().mean())
    assert abs(dropped - 0.1) < 5 * math.sqrt(0.09 / ones.numel()) + 1e-3
    torch.testing.assert_close(
        draws[0].max(), torch.tensor(2 + 1 / 0.9, device=device), rtol=1e-2, atol=0
    )
    assert torch.equal(dropout_add(ones, 2 * ones, 0.1, False), 3 * ones)
