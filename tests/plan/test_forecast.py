"""Forecasts, against published runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bertds.cost_model.hardware import Hardware, find
from bertds.plan.forecast import Forecast, forecast
from bertds.plan.sweep import best, fitting_layouts, sweep
from tests.support.plan_settings import phase, settings

# The published end-to-end times, with each system's own single-GPU speed as the efficiency:
# DeepLearningExamples' README (A100; July 2019 for V100), DeepSpeed's blog of 28 May 2020 (table
# 1 and 272 / 52 sequences a second). Padding was computed there, so rows are counted full; DLE
# on A100 sorts rows into bins, and there real tokens are counted.
DLE_A100 = {"efficiency_128": 0.447, "efficiency_512": 0.38}
DLE_2H = {"efficiency_128": 211 * 240.6e9 / 125e12, "efficiency_512": 39.1 * 1020.5e9 / 125e12}
DEEPSPEED = {"efficiency_128": 0.52, "efficiency_512": 0.42}
PUBLISHED = [
    ("DLE, 32 DGX A100", "a100", 32, 8, DLE_A100, "large", (256, 32), None, 1.2),
    ("DLE, 64 DGX-2H", "v100", 64, 16, DLE_2H, "large", (64, 8), "full", 1.124),
    ("DLE, 16 DGX-2H", "v100", 16, 16, DLE_2H, "large", (64, 8), "full", 3.94),
    ("DLE, 4 DGX-2H", "v100", 4, 16, DLE_2H, "large", (64, 8), "full", 15.35),
    ("DeepSpeed, 64 DGX-2", "v100", 64, 16, DEEPSPEED, "bing_large", (64, 8), "full", 44 / 60),
    ("DeepSpeed, 16 DGX-2", "v100", 16, 16, DEEPSPEED, "bing_large", (64, 8), "full", 144 / 60),
    ("DeepSpeed, 4 DGX-2", "v100", 4, 16, DEEPSPEED, "bing_large", (64, 8), "full", 8 + 41 / 60),
    ("DeepSpeed, 1 DGX-2", "v100", 1, 16, DEEPSPEED, "bing_large", (64, 8), "full", 33 + 13 / 60),
]


@pytest.mark.parametrize(
    ("gpu", "nodes", "gpus", "changes", "recipe", "micro", "rows", "hours"),
    [case[1:] for case in PUBLISHED],
    ids=[case[0] for case in PUBLISHED],
)
def test_published_runs_within_10_percent(
    repository: Path,
    gpu: str,
    nodes: int,
    gpus: int,
    changes: dict[str, float],
    recipe: str,
    micro: tuple[int, int],
    rows: str | None,
    hours: float,
) -> None:
    machine: Hardware = replace(find(gpu), **changes)
    found = 0.0
    for number in (1, 2):
        config = phase(number, repository, recipe)
        name = "bing_lamb" if recipe.startswith("bing") else "lamb"
        suffix = "" if recipe.startswith("bing") else "_a100_80g"
        plan = forecast(
            config,
            replace(
                settings(repository, f"{name}_phase{number}{suffix}"),
                gradient_accumulation_steps=None,
            ),
            machine,
            nodes=nodes,
            devices_per_node=gpus,
            micro_batch=micro[number - 1],
            stage=1,
            tokens_per_row=config.data.sequence_length if rows == "full" else None,
        )
        found += plan.hours
    assert found == pytest.approx(hours, rel=0.1), f"{found:.2f} h planned, {hours:.2f} published"


def test_gradients_are_hidden_only_where_deepspeed_hides_them(repository: Path) -> None:
    def exposed(stage: int, wanted: bool) -> float:
        zero = {"stage": stage, "overlap_comm": wanted}
        chosen = settings(repository, "lamb_phase1_a100_80g", zero_optimization=zero)
        hardware = find("a100")
        return forecast(
            phase(1, repository), chosen, hardware, nodes=32, devices_per_node=8
        ).step.exposed

    assert exposed(2, True) < exposed(2, False)
    assert exposed(1, True) == exposed(1, False)  # DeepSpeed's BF16 optimizer


def test_sweep_covers_stages_and_devices(repository: Path) -> None:
    config, json_ = phase(1, repository), settings(repository, "lamb_phase1_h100")
    rows = sweep(config, json_, find("h100"), 8, {"vocab_size": 30522})
    assert {row.shape.stage for row in rows} == {1, 2, 3}
    assert max(row.batch.world_size for row in rows) == 4096
    chosen = best(rows)
    assert all(row.fits for row in chosen)
    by_devices = [row.hours for row in chosen if row.shape.stage == 1]
    assert by_devices == sorted(by_devices, reverse=True)  # more devices are never slower here
    efficiency = [row.mfu for row in chosen if row.shape.stage == 1]
    assert efficiency[0] > efficiency[-1]  # but less efficient


def test_one_rule_says_what_fits(repository: Path) -> None:
    """At 93% of the memory the plan fits, and so does its micro batch in the list by stage."""
    config, json_ = phase(1, repository), settings(repository, "lamb_phase1_h100")

    def planned(gib: float) -> Forecast:
        card = replace(find("h100"), memory_gib=gib)
        return forecast(config, json_, card, nodes=1, devices_per_node=8, micro_batch=64, stage=1)

    needed = planned(80.0).memory_gib
    for share, fits in ((0.93, True), (0.97, False)):
        plan = planned(needed / share)
        assert plan.fits is fits
        assert f"1: micro batch {64 if fits else 32}," in fitting_layouts(plan)


def test_a_falling_mask_rate_counts_its_mean_for_time_and_its_peak_for_memory(
    repository: Path,
) -> None:
    """30% to 10% is 20% on average; a run by the clock sees only the rates of its steps."""
    json_, card = settings(repository, "lamb_phase1_h100"), find("h100")

    def planned(first: float, last: float | None, **schedule: float) -> Forecast:
        config = phase(1, repository)
        data = replace(
            config.data,
            masked_lm_prob=first,
            masked_lm_prob_end=last,
            max_predictions_per_sequence=64,
        )
        config = replace(config, data=data, schedule=replace(config.schedule, **schedule))
        return forecast(config, json_, card, nodes=1, devices_per_node=8, tokens_per_row=115)

    falling, mean, peak = planned(0.3, 0.1), planned(0.2, None), planned(0.3, None)
    assert falling.flops == pytest.approx(mean.flops, rel=1e-4)
    assert falling.hours == pytest.approx(mean.hours, rel=1e-3)
    assert falling.memory == peak.memory != mean.memory
    # A tenth of the time is a tenth of the steps: 30% to 28%.
    early = planned(0.3, 0.1, clock_hours=falling.hours / 10)
    assert early.step.flops == pytest.approx(planned(0.29, None).step.flops, rel=1e-4)


def test_processes_of_one_machine_share_its_memory(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12.5 GiB each: two do not fit into 16 GiB."""
    machine = replace(find("cpu"), memory_gib=16.0)
    config, json_ = phase(1, repository, "base"), settings(repository, "lamb_phase1_a100_80g")
    one, two = (
        forecast(config, json_, machine, nodes=1, devices_per_node=n, micro_batch=64, stage=1)
        for n in (1, 2)
    )
    assert 8 < two.memory_gib < one.memory_gib < 15
    assert one.fits and not two.fits
