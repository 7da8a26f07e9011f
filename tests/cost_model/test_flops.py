"""Operations and parameters, by the published figures and by the model itself."""

from __future__ import annotations

from typing import Any

import pytest

from bertds.config.batch_plan import BatchPlan
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import Config, DataConfig, ModelConfig, ScheduleConfig
from bertds.cost_model.flops import (
    forward_backward_flops,
    masked_per_row,
    mean_masked_per_row,
    parameter_count,
)
from bertds.cost_model.step_time import muon_flops
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
def test_parameters_and_muon_are_counted_as_the_model_has_them(
    model: ModelConfig, words: int
) -> None:
    import torch

    from bertds.model.build import build_model
    from bertds.optim.muon import is_hidden_matrix

    with torch.device("meta"):
        real = dict(build_model(model, words).named_parameters())
    assert parameter_count(model, words) == sum(p.numel() for p in real.values())
    shapes = [tuple(p.shape) for n, p in real.items() if is_hidden_matrix(n, tuple(p.shape))]
    # One iteration: x @ x.t(), its square, and the product with x.
    products = sum(4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3 for s in shapes)
    assert muon_flops(model) == 5 * products


def test_a_modern_encoder_is_counted_by_hand() -> None:
    """ModernBERT-base: 149 M parameters (arXiv:2412.13663, table 4); 8 global layers of 22."""
    assert parameter_count(MODERN_BASE, 50368) == 149_655_232
    linear = 22 * 1024 * (8 * 768**2 + 6 * 768 * 1152)
    attention = 4 * 768 * 1024 * (8 * 1024 + 14 * 129)
    head = 300 * (2 * 768**2 + 2 * 768 * 50368)
    found = forward_backward_flops(MODERN_BASE, 50368, 1024, 300)
    assert found == pytest.approx(3 * (linear + attention + head), rel=1e-12)


FALLING = {"masked_lm_prob": 0.3, "masked_lm_prob_end": 0.1}


@pytest.mark.parametrize("most", [20, 80])  # 20: the first steps are limited by it
@pytest.mark.parametrize("steps", [4, 6, 40, 100_000])
@pytest.mark.parametrize("growing", [{}, {"batch_from": 8, "batch_ramp_steps": 4}])
@pytest.mark.parametrize("reached", [{}, {"masked_lm_prob_steps": 3}])
def test_masked_tokens_are_averaged_over_the_rows_of_the_steps_in_question(
    growing: dict[str, Any], reached: dict[str, Any], steps: int, most: int
) -> None:
    data = DataConfig(max_predictions_per_sequence=most, **FALLING, **reached)
    config = Config(data=data, schedule=ScheduleConfig(total_steps=steps, **growing))
    plan = BatchPlan(global_batch_size=24, micro_batch_size=2, world_size=2)
    ramp = BatchRamp.of(config.schedule, plan)
    rate = MaskRate.of(data, steps)
    assert rate is not None

    def wanted(first: int, last: int) -> float:
        rows = [ramp.at(step).global_batch_size for step in range(first, last)]
        masked = (n * min(most, 100 * rate.at(step)) for step, n in zip(range(first, last), rows))
        return sum(masked) / sum(rows)

    for first, last in ((0, steps), (0, 1), (1, 4), (steps // 2, steps)):
        found = mean_masked_per_row(config, ramp, 100.0, first, last)
        assert found == pytest.approx(wanted(first, last), rel=1e-3), (first, last)
    assert mean_masked_per_row(config, ramp, 100.0) == pytest.approx(wanted(0, steps), rel=1e-3)


def test_a_constant_rate_needs_no_mean() -> None:
    config = Config()
    ramp = BatchRamp(BatchPlan(global_batch_size=2, micro_batch_size=1, world_size=1), 2, 0)
    assert mean_masked_per_row(config, ramp, 100.0) == masked_per_row(100.0, 0.15, 20) == 15.0
