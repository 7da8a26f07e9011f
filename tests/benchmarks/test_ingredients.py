"""The benchmark of ingredients: what its runs share, and what it scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ingredients import (
    ALL,
    ROWS_128,
    SHORT_THEN_LONG,
    main,
    settings_of,
    two_phases,
)
from bertds.config.load import load_config, split_assignments
from bertds.config.ramps import MaskRate
from bertds.optim.lr_schedule import LearningRate
from tests.benchmarks.results import result_of


def rates(values: dict[str, Any], steps: int) -> list[tuple[float, float]]:
    """Return the learning rate and the mask rate of each step of a run."""
    settings = settings_of(Path("run"), Path("data"), steps, values)
    settings = {key: value for key, value in settings.items() if not key.startswith("deepspeed.")}
    assignments = [f"{key}={value}" for key, value in settings.items()]
    config = load_config("small_cpu", split_assignments(assignments))
    total = config.schedule.total_steps
    mask = MaskRate.of(config.data, total)
    assert mask is not None
    return [(LearningRate(1.0, config.schedule)(step), mask.at(step)) for step in range(total)]


@pytest.mark.parametrize("steps", [200, 7])
def test_two_phases_have_the_rates_of_one_run(steps: int) -> None:
    short, long = two_phases(Path("short"), steps, ROWS_128)
    found, wanted = [*rates(short, steps), *rates(long, steps)], rates({}, steps)
    assert len(found) == len(wanted) == steps
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
def test_ingredients_are_scored_on_the_same_rows(tiny_data, tmp_path, capsys) -> None:
    longer = "rows of 128 tokens"
    picture = tmp_path / "r.png"
    argv = ["--data", str(tiny_data), "--work", str(tmp_path), "--steps", "2"]
    argv += ["--picture", str(picture)]
    runs = result_of(main, [*argv, "--only", ALL, longer, SHORT_THEN_LONG], tmp_path)["runs"]
    assert runs[SHORT_THEN_LONG]["loss_64"] not in (runs[ALL]["loss_64"], runs[longer]["loss_64"])
    for length in (64, 128):
        assert runs[ALL][f"masked_{length}"] == runs[longer][f"masked_{length}"] > 0
        assert runs[ALL][f"loss_{length}"] != runs[longer][f"loss_{length}"]
    assert "average_loss_64" in runs[ALL] and "average_loss_64" not in runs[longer]
    assert "worse by" in capsys.readouterr().out
    assert picture.read_bytes()[:4] == b"\x89PNG"
