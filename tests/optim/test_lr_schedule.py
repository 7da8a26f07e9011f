from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.config.load import load_config
from bertds.config.recipe import ScheduleConfig
from bertds.optim.lr_schedule import LearningRate

RECIPES = sorted(p.stem for p in Path(__file__).parents[2].glob("bertds/recipes/*.yaml"))

# Worked by hand from the formulas in the papers and scripts: {recipe: {step: learning rate}}.
# DLE: 6e-3 * 1/2001; 6e-3 * sqrt(1 - 2001/7038); 4e-3 * sqrt(1 - 200/1563).
# bing_bert: 11e-3 * (225/450)^2 + 1e-3 half-way through warm-up; 11e-3 * 0.9^1 + 1e-3 250 later.
BY_HAND = {
    "large_phase1": {0: 2.998501e-6, 2000: 6e-3, 2001: 5.075895e-3, 7037: 7.151985e-5},
    "large_phase2": {0: 2e-5, 199: 4e-3, 200: 3.735325e-3},
    "base_phase1": {2000: 6e-3, 2001: 5.075895e-3},
    "base_phase2": {199: 4e-3, 200: 3.735325e-3},
    "devlin_base_phase1": {0: 1e-8, 9999: 1e-4, 10000: 9.9e-5, 500000: 5e-5},
    "devlin_large_phase1": {9999: 1e-4, 899999: 1.00001e-5},
    "devlin_base_phase2": {0: 1e-5, 50000: 5e-6},
    "devlin_large_phase2": {0: 1e-5, 99999: 1e-10},
    "bing_large_phase1": {224: 3.75e-3, 449: 12e-3, 450: 12e-3, 700: 10.9e-3},
    "bing_large_phase2": {74: 5e-4, 149: 2e-3, 150: 2e-3, 300: 1.8e-3},
    "mosaic_base": {4199: 5e-4, 4200: 5e-4, 37100: 2.55e-4, 69999: 1.000745e-5},
    "modern_base": {0: 2.162162e-7, 3699: 8e-4, 361300: 8e-4, 366600: 2.343146e-4},
    "nemo_base": {22856: 4.375e-5, 22857: 4.353069e-5},
    "academic_24h": {},
    "small_cpu": {},
    "ten_minutes_h100": {},
    "ten_minutes_h100_modern": {},
    "domain_adapt": {749: 5e-5, 750: 4.7e-5, 6250: 2.5e-5},
    "tiny_cpu_phase1": {},
    "tiny_cpu_phase2": {},
    "facts_cpu": {179: 2e-3, 900: 1e-3},
}


def pair(repository: Path, name: str) -> tuple[ScheduleConfig, dict]:
    config = load_config(repository / "bertds" / "recipes" / f"{name}.yaml")
    deepspeed = json.loads((repository / config.run.deepspeed_config).read_text())
    return config.schedule, deepspeed


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_give_the_learning_rates_worked_by_hand(repository: Path, name: str) -> None:
    schedule, deepspeed = pair(repository, name)
    learning_rate = LearningRate(deepspeed["optimizer"]["params"]["lr"], schedule)
    for step, expected in BY_HAND[name].items():
        assert learning_rate(step) == pytest.approx(expected, rel=1e-5), step
    if schedule.clock_hours is None:
        values = [learning_rate(s) for s in range(0, schedule.total_steps, 97)]
        peak = deepspeed["optimizer"]["params"]["lr"]
        assert all(0 < value <= peak * (1 + 1e-12) for value in values)


def test_the_clock_schedule_follows_hours(repository: Path) -> None:
    schedule, deepspeed = pair(repository, "academic_24h")
    learning_rate = LearningRate(deepspeed["optimizer"]["params"]["lr"], schedule)
    assert learning_rate(123, hours=0.72) == pytest.approx(5e-4)  # half of 6% of 24 h
    assert learning_rate(7, hours=1.44) == pytest.approx(1e-3)
    assert learning_rate(7, hours=12.72) == pytest.approx(5e-4)
    assert learning_rate(99, hours=24.0) == 0.0


def test_a_table_of_small_schedules() -> None:
    def values(**kwargs: object) -> list[float]:
        learning_rate = LearningRate(1.0, ScheduleConfig(total_steps=4, **kwargs))  # type: ignore[arg-type]
        return [round(learning_rate(step), 6) for step in range(4)]

    assert values() == [1.0, 0.75, 0.5, 0.25]
    assert values(warmup_steps=2) == [0.5, 1.0, 0.5, 0.25]
    assert values(warmup_steps=2, decay_from="warmup_end") == [0.5, 1.0, 1.0, 0.5]
    assert values(decay="constant", warmup_steps=2, warmup_power=2.0) == [0.25, 1.0, 1.0, 1.0]
    assert values(decay="exponential", decay_every_steps=1) == [1.0, 0.9, 0.81, 0.729]
    # Every 2 steps by 0.9, and so every step by its square root.
    assert values(decay="exponential", decay_every_steps=2) == [1.0, 0.948683, 0.9, 0.853815]
    assert values(floor=0.2) == [1.0, 0.8, 0.6, 0.4]
    assert values(first_step=4, horizon_steps=8) == [0.5, 0.375, 0.25, 0.125]
    assert values(warmup_steps=4, warmup_from=0.5) == [0.625, 0.75, 0.875, 1.0]


def test_a_trapezoid_holds_the_peak_until_its_decay() -> None:
    def values(**kwargs: object) -> list[float]:
        config = ScheduleConfig(total_steps=8, warmup_steps=2, **kwargs)  # type: ignore[arg-type]
        return [round(LearningRate(1.0, config)(step), 6) for step in range(8)]

    linear = [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert values(decay_steps=4) == linear
    assert values(decay_ratio=0.5) == linear
    assert values(decay_steps=4, floor=0.2) == [0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]
    assert values(decay_steps=4, decay="sqrt")[4:] == [
        1.0,
        0.5,
        round(1 - 0.5**0.5, 6),
        round(1 - 0.75**0.5, 6),
    ]
    assert values(decay_steps=4, decay="cosine")[4:] == [1.0, 0.853553, 0.5, 0.146447]
    # Another run over the tail of the same schedule: the decay of a stable checkpoint.
    tail = ScheduleConfig(total_steps=4, first_step=4, decay_steps=4)
    assert [LearningRate(1.0, tail)(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_trapezoid_follows_the_clock() -> None:
    config = ScheduleConfig(clock_hours=10.0, warmup_ratio=0.1, decay_ratio=0.2)
    learning_rate = LearningRate(2.0, config)
    found = [learning_rate(0, hours) for hours in (0.5, 1.0, 5.0, 8.0, 9.0, 10.0)]
    assert found == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.0, 0.0])
