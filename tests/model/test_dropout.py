"""The quick mask behaves as dropout should."""

from __future__ import annotations

import math

import pytest
import torch

from bertds.model.dropout import dropout, dropout_add, dropout_noise


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_scale_and_independence(probability, dtype) -> None:
    torch.manual_seed(0)
    count = 400_003  # not a multiple of the lanes in a draw
    noise = dropout_noise(torch.empty(count, dtype=dtype), probability)
    assert noise.dtype == dtype
    dropped = (noise == 0).float()
    error = math.sqrt(probability * (1 - probability) / count)
    assert abs(dropped.mean().item() - probability) < 5 * error
    kept = noise[noise != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=4e-3)
    # Neighbours (lanes of one draw, and of the next) know nothing of each other.
    centred = dropped - dropped.mean()
    for lag in (1, 2, 3, 4, 8):
        correlation = (centred[:-lag] * centred[lag:]).mean() / centred.var()
        assert abs(correlation.item()) < 5 / math.sqrt(count)


def test_each_lane_drops_its_share() -> None:
    torch.manual_seed(0)
    lanes = (dropout_noise(torch.empty(100_000, 4), 0.1) == 0).float().mean(0)
    assert (lanes - 0.1).abs().max() < 5 * math.sqrt(0.09 / 100_000)


def test_same_seed_same_mask() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(dropout_noise(torch.empty(5, 7), 0.3))
    assert torch.equal(*masks)


def test_gradient_passes_where_the_value_passed() -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 6, requires_grad=True)
    residual = torch.randn(50, 6, requires_grad=True)
    torch.manual_seed(1)
    noise = dropout_noise(values, 0.4)
    torch.manual_seed(1)
    output = dropout_add(values, residual, 0.4, training=True)
    torch.testing.assert_close(output, residual + values * noise)
    output.sum().backward()
    assert torch.equal(values.grad, noise)
    assert torch.equal(residual.grad, torch.ones_like(residual))


def test_nothing_is_dropped_outside_training_or_at_probability_zero() -> None:
    values = torch.randn(10)
    assert dropout(values, 0.5, training=False) is values
    assert dropout(values, 0.0, training=True) is values
    assert torch.equal(dropout_add(values, values, 0.5, training=False), 2 * values)


def test_probability_one_drops_everything() -> None:
    assert not dropout(torch.ones(9), 1.0, training=True).any()
