from __future__ import annotations

import pytest

from bertds.cli import main as command
from bertds.config.load import load_config
from bertds.cost_model.hardware import find
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import ConfigError
from bertds.plan.forecast import forecast
from bertds.plan.propose import FEWEST_STEPS, SIZES, propose

MUCH = 4e9


@pytest.mark.parametrize(
    ("gpu", "gpus", "hours"),
    [("h100", 8, 24), ("a100", 3, 8), ("v100", 5, 100), ("l4", 1, 2), ("cpu", 3, 0.2)],
)
def test_a_proposal_is_valid_and_fits_and_its_batch_can_be_divided(
    gpu: str, gpus: int, hours: float
) -> None:
    found = propose(
        find(gpu), nodes=1, devices_per_node=gpus, hours=hours, vocab_size=30522, corpus_tokens=MUCH
    )
    config, settings = load_config(found.recipe), check_deepspeed_values(found.deepspeed)
    plan = forecast(config, settings, find(gpu), nodes=1, devices_per_node=gpus)
    assert plan.fits and plan.batch.world_size == gpus
    assert plan.steps == found.plan.steps
    assert plan.steps * plan.step.total == pytest.approx(hours * 3600, rel=0.1)
    assert plan.steps >= FEWEST_STEPS or plan.batch.global_batch_size < 500
    assert plan.batch.micro_batch_size >= 4
    expected = {"cpu": "fp32", "v100": "fp16"}.get(gpu, "bf16")
    assert settings.precision == expected


def test_more_time_or_more_text_make_a_larger_model() -> None:
    def size(hours: float, tokens: float) -> int:
        found = propose(
            find("h100"),
            nodes=1,
            devices_per_node=1,
            hours=hours,
            vocab_size=30522,
            corpus_tokens=tokens,
        )
        return list(SIZES).index(found.size)

    by_time = [size(hours, MUCH) for hours in (0.05, 0.5, 5, 50)]
    assert by_time == sorted(by_time) and by_time[0] < by_time[-1]
    by_text = [size(50, tokens) for tokens in (1e5, 1e7, 1e9)]
    assert by_text == sorted(by_text) and by_text[0] < by_text[-1]


def test_a_requested_size_is_used_and_judged() -> None:
    def ask(size: str, tokens: float = MUCH, hours: float = 24) -> str:
        return propose(
            find("h100"),
            nodes=1,
            devices_per_node=8,
            hours=hours,
            vocab_size=30522,
            corpus_tokens=tokens,
            size=size,
        ).why

    assert ask("large") == "as requested"
    assert ask("large", tokens=1e6) == "limited by text"
    assert ask("large", hours=0.1) == "limited by time"
    with pytest.raises(ConfigError, match="--model huge: choose one of tiny, mini"):
        ask("huge")


def test_too_little_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="the time is too short"):
        propose(
            find("cpu"),
            nodes=1,
            devices_per_node=1,
            hours=1e-5,
            vocab_size=2048,
            corpus_tokens=MUCH,
        )


def test_a_plan_of_a_run_by_the_clock_ends_with_it() -> None:
    config = load_config("academic_24h")
    settings = check_deepspeed_values(
        {
            "train_batch_size": 4096,
            "train_micro_batch_size_per_gpu": 128,
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        }
    )
    plan = forecast(config, settings, find("h100"), nodes=1, devices_per_node=8)
    assert plan.steps < config.schedule.total_steps
    assert plan.hours == pytest.approx(24, abs=0.1)


def test_the_sweep_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["plan", "--config", "large_phase1", "--gpu", "v100", "--sweep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= 80
    assert all(len(line.split()) == 11 for line in lines[:20])
