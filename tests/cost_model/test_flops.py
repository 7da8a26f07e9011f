"""Operations and parameters, by the published figures and by the model itself."""

from __future__ import annotations

import pytest

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import forward_backward_flops, masked_per_row, parameter_count
from tests.support.plan_settings import LARGE, MODERN_BASE


@pytest.mark.parametrize(
    ("model", "length", "masked", "gflop"),
    [
        (LARGE, 128, 20, 240.6),
        (LARGE, 512, 80, 1020.5),
        (ModelConfig(), 128, 20, 69.9),
        (ModelConfig(), 512, 80, 301.5),
    ],
)
def test_flops_equal_the_published_figures(
    model: ModelConfig, length: int, masked: int, gflop: float
) -> None:
    found = forward_backward_flops(model, 30528, length, masked) / 1e9
    assert found == pytest.approx(gflop, abs=0.06)
    batch = forward_backward_flops(model, 30528, 8 * length, 8 * masked, rows=8) / 1e9
    assert batch == pytest.approx(8 * found)  # the pooler's too, one per row


def test_masked_tokens_are_a_share_at_least_one_and_at_most_the_limit() -> None:
    assert masked_per_row(100, 0.15, 20) == 15.0
    assert masked_per_row(3, 0.15, 20) == 1.0
    assert masked_per_row(512, 0.15, 20) == 20.0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LARGE, 30522),
        (
            ModelConfig(
                hidden_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=100,
                next_sentence=False,
            ),
            77,
        ),
        (MODERN_BASE, 50368),
    ],
)
def test_parameters_are_counted_as_the_model_has_them(model: ModelConfig, words: int) -> None:
    import torch

    from bertds.model.build import build_model

    with torch.device("meta"):
        real = sum(p.numel() for p in build_model(model, words).parameters())
    assert parameter_count(model, words) == real


def test_a_modern_encoder_is_counted_by_hand() -> None:
    """ModernBERT-base: 149 M parameters (arXiv:2412.13663, table 4); 8 global layers of 22."""
    assert parameter_count(MODERN_BASE, 50368) == 149_655_232
    linear = 22 * 1024 * (8 * 768**2 + 6 * 768 * 1152)
    attention = 4 * 768 * 1024 * (8 * 1024 + 14 * 129)
    head = 300 * (2 * 768**2 + 2 * 768 * 50368)
    found = forward_backward_flops(MODERN_BASE, 50368, 1024, 300)
    assert found == pytest.approx(3 * (linear + attention + head), rel=1e-12)
