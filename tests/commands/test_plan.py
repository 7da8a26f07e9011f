"""``bertds plan`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.cli import main as command


def test_command_prints_a_plan(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(repository / "bertds/recipes/large_phase1.yaml")
    assert command(["plan", "--config", recipe, "--gpu", "a100", "--nodes", "32"]) == 0
    text = capsys.readouterr().out
    assert "7,038 steps of 65,536 rows" in text and "fits" in text and "DLE" in text
    assert "start-up: 2 min, included in the time of the phase" in text
    assert command(["plan", "--config", recipe, "--gpu", "v100", "--price", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["dollars"] == pytest.approx(values["device_hours"])
    assert command(["plan", "--config", recipe, "--gpu", "abacus"]) == 2
    assert "choose one of v100" in capsys.readouterr().err


def test_batch_sizes_that_cannot_be_divided_are_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(repository / "bertds/recipes/large_phase1.yaml")
    assert command(["plan", "--config", recipe, "--nodes", "3"]) == 2
    assert "the nearest multiples are" in capsys.readouterr().err
