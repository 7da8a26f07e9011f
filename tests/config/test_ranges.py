"""The ranges of numbers in recipes and DeepSpeed JSONs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertds.config.describe import is_numeric
from bertds.config.keys import all_keys
from bertds.config.load import load_config, split_assignments
from bertds.config.ranges import LARGEST, SMALLEST, Range, range_of
from bertds.engine.ds_config import check_deepspeed_values
from bertds.engine.ds_config_keys import TOP, Number
from bertds.errors import ConfigError

NUMERIC = [key for key, kind in all_keys().items() if is_numeric(kind)]
TINY, HUGE = "1e-50", "1e308"
NOT_NUMBERS = ("nan", ".nan", "inf", "-.inf", "1e400", "true", "one", "[1]", "{a: 1}")


def refused(key: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, split_assignments([f"{key}={value}"]))
    text = str(caught.value)
    assert key in text and "\n" not in text
    return text


@pytest.mark.parametrize("key", NUMERIC)
def test_no_key_accepts_what_is_no_number_or_below_zero(key: str) -> None:
    for value in (*NOT_NUMBERS, "-1", "-1e-50"):
        refused(key, value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model.layer_norm_eps", ("0", TINY, "1.1", HUGE)),
        ("model.initializer_range", ("0", TINY, "1.1", HUGE)),
        ("model.z_loss", ("1.1", HUGE)),
        ("model.hidden_dropout_prob", ("1", HUGE)),
        ("model.attention_probs_dropout_prob", ("1", HUGE)),
        ("model.global_rope_theta", ("0", "0.5", HUGE)),
        ("model.local_rope_theta", ("0", "0.5", HUGE)),
        ("data.cache_gib", ("0", TINY, HUGE)),
        ("data.fetch_timeout_minutes", ("1e6", HUGE)),
        ("data.prefetch_steps", ("0", "1001", "1e18")),
        ("data.pack_tokens", ("2147483648",)),
        ("schedule.decay_factor", ("0", TINY, "1.1", HUGE)),
        ("schedule.clock_hours", ("0", TINY, HUGE)),
        ("run.max_hours", (HUGE,)),
        ("run.stop_margin_minutes", (HUGE,)),
        ("run.memory_limit_gib", ("0", TINY, HUGE)),
        ("guard.peer_timeout_seconds", ("0.05", TINY, "1e18", HUGE)),
        ("guard.progress_timeout_seconds", ("1e18", HUGE)),
        ("guard.meeting_timeout_seconds", ("0", "1e18", HUGE)),
    ],
)
def test_values_that_would_fail_later_are_refused(key: str, values: tuple[str, ...]) -> None:
    for value in values:
        assert "must be" in refused(key, value) or "drops everything" in refused(key, value)


def test_messages() -> None:
    assert refused("model.layer_norm_eps", 0).endswith("model.layer_norm_eps=0.0 must be above 0")
    assert refused("model.layer_norm_eps", TINY).endswith("=1e-50 must be at least 1.18e-38")
    assert refused("data.prefetch_steps", 5000).endswith("=5000 must be at most 1,000")
    assert Range(1, 5, or_zero=True).problem(0.5) == "must be 0 or at least 1"
    assert Range(SMALLEST, or_zero=True).problem(-1) == "must be at least 0"
    assert Range(0, 1).problem(float("nan")) == "must be at least 0"
    assert not Range(1, 5, or_zero=True).problem(0) and not Range(1, 5).problem(5)


def test_every_range_contains_the_default() -> None:
    load_config(None)
    assert range_of("model.layer_norm_eps") == Range(SMALLEST, 1)


@pytest.mark.parametrize("eps", [SMALLEST, 1e-12, 1.0])
def test_the_smallest_epsilon_keeps_constant_rows_finite(eps: float) -> None:
    """Below it, float32 has 0, and LayerNorm computes 0 / 0."""
    row = torch.full((2, 64), 0.1, requires_grad=True)
    torch.nn.functional.layer_norm(row, [64], eps=eps).square().sum().backward()
    assert row.grad is not None and row.grad.isfinite().all()
    assert torch.nn.functional.layer_norm(torch.zeros(2, 8), [8], eps=1e-50).isnan().all()


def test_the_smallest_epsilon_keeps_unused_words_in_place() -> None:
    words = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([words], lr=0.1, eps=SMALLEST, weight_decay=0.0)
    words.grad = torch.zeros(4)
    optimizer.step()
    assert words.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule.decay": "exponential", "schedule.clock_hours": 1},
        {"model.type_vocab_size": 1, "data.path": "corpus"},
    ],
)
def test_combinations_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_config(None, changes)
    # Each part alone is possible.
    for key, value in changes.items():
        load_config(None, {key: value})


def changed(path: str, value: object) -> dict[str, Any]:
    values: dict[str, Any] = {
        "train_batch_size": 12,
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    *sections, last = path.split(".")
    here = values
    for section in sections:
        here = here.setdefault(section, {})
    here[last] = value
    return values


def numbers(table: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, rule in table.items():
        if isinstance(rule, dict):
            found += numbers(rule, f"{prefix}{key}.")
        elif isinstance(rule, Number):
            found.append(prefix + key)
    return found


PARAMS = {
    "AdamW": ("lr", "eps", "weight_decay"),
    "Lamb": ("lr", "eps", "weight_decay", "min_coeff", "max_coeff"),
    "Muon": ("lr", "eps", "weight_decay", "momentum", "ns_steps"),
}


@pytest.mark.parametrize("key", numbers(TOP))
def test_no_number_of_the_json_accepts_these(key: str) -> None:
    for value in (-1, float("nan"), float("inf"), True, "one", [1], 10**400, 1e308, 1e-50):
        with pytest.raises(ConfigError, match=key.split(".")[-1]):
            check_deepspeed_values(changed(key, value))


@pytest.mark.parametrize("kind", PARAMS)
def test_no_number_of_an_optimizer_accepts_these(kind: str) -> None:
    for name in PARAMS[kind]:
        for value in (-1, float("nan"), float("inf"), True, "one", [1], 10**400, 1e308):
            values = changed(f"optimizer.params.{name}", value)
            values["optimizer"] = {**values["optimizer"], "type": kind}
            values["optimizer"]["params"] = {"lr": 1e-3, **values["optimizer"]["params"]}
            with pytest.raises(ConfigError, match=f"optimizer.params.{name}=.* must be"):
                check_deepspeed_values(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.params.eps", 0, "optimizer.params.eps=0 must be above 0"),
        ("optimizer.params.eps", 1e-50, "eps=1e-50 must be at least 1.18e-38"),
        ("gradient_clipping", 1e-50, "gradient_clipping=1e-50 must be 0 or at least 1.18e-38"),
        ("gradient_clipping", 1e308, "must be at most 3.4e"),
        ("gradient_predivide_factor", 0, "gradient_predivide_factor=0 must be above 0"),
        ("fp16.initial_scale_power", 128, "fp16.initial_scale_power=128 must be at most 127"),
        ("fp16.min_loss_scale", 0, "fp16.min_loss_scale=0 must be at least 1"),
        ("train_batch_size", 2**25, "train_batch_size=33554432 must be at most 16,777,216"),
        ("train_micro_batch_size_per_gpu", 0, "per_gpu=0 must be at least 1"),
    ],
)
def test_values_of_the_json_that_would_fail_later(path: str, value: object, message: str) -> None:
    values = changed(path, value)
    values["optimizer"]["params"].setdefault("lr", 1e-3)
    with pytest.raises(ConfigError) as caught:
        check_deepspeed_values(values)
    assert message in str(caught.value)


def test_what_float32_can_represent_is_accepted() -> None:
    for path, value in (("gradient_clipping", SMALLEST), ("gradient_clipping", LARGEST)):
        check_deepspeed_values(changed(path, value))
