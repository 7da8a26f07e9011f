from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.config.load import load_config
from bertds.errors import ConfigError
from bertds.monitor.remaining_time import later_phases, seconds_of, speed
from bertds.monitor.status import read_status, seconds_of_all
from tests.support.made_runs import make_run, train_line
from tests.support.tiny import SPECIAL


def recipe(folder: Path, name: str, following: str = "") -> Path:
    path = folder / name
    path.write_text(
        f"run: {{deepspeed_config: f.json, next_recipe: '{following}'}}\n"
        "model: {hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 1, "
        "intermediate_size: 128, next_sentence: false}\n"
        "data: {sequence_length: 128, max_predictions_per_sequence: 20, pairs: none}\n"
        "schedule: {total_steps: 10}\n"
    )
    (folder / "f.json").write_text(json.dumps({"train_batch_size": 8}))
    return path


def test_operations_of_a_later_phase_by_hand(tmp_path: Path) -> None:
    recipe(tmp_path, "b.yaml")
    config = load_config(recipe(tmp_path, "a.yaml", str(tmp_path / "b.yaml")))
    (phase,) = later_phases(config, 100)
    tokens, masked = 0.9 * 128, 0.15 * 0.9 * 128
    layer = tokens * (8 * 64**2 + 4 * 64 * 128) + 4 * 64 * tokens * tokens
    head = masked * (2 * 64**2 + 2 * 64 * 100)
    assert phase.flops == pytest.approx(3 * (layer + head) * 8 * 10)
    rate = speed(train_line(1, tflops=0.5), devices=2)
    assert seconds_of([phase, phase], rate) == pytest.approx(2 * phase.flops / 1e12)
    assert seconds_of([phase], speed({"step": 1}, 2)) == 0.0  # the speed is not known


def test_a_later_phase_counts_the_mask_rate_of_each_step_by_its_rows(tmp_path: Path) -> None:
    """Steps of 4 and 8 rows at 16% and 10%: 12% on average."""
    path = recipe(tmp_path, "b.yaml")
    text = path.read_text().replace("data: {", "data: {masked_lm_prob: 0.16, ")
    path.write_text(
        text.replace(
            "masked_lm_prob:", "masked_lm_prob_end: 0.1, masked_lm_prob_steps: 1, masked_lm_prob:"
        ).replace("total_steps: 10", "total_steps: 2, batch_from: 4, batch_ramp_steps: 1")
    )
    (phase,) = later_phases(load_config(recipe(tmp_path, "a.yaml", str(path))), 100)
    tokens = 0.9 * 128
    masked = tokens * (4 * 0.16 + 8 * 0.1) / 12
    layer = tokens * (8 * 64**2 + 4 * 64 * 128) + 4 * 64 * tokens * tokens
    head = masked * (2 * 64**2 + 2 * 64 * 100)
    assert phase.flops == pytest.approx(3 * (layer + head) * 12)


def test_a_later_phase_ends_at_its_clock_at_the_latest(tmp_path: Path) -> None:
    path = recipe(tmp_path, "b.yaml")
    path.write_text(path.read_text().replace("schedule: {", "schedule: {clock_hours: 0.5, "))
    config = load_config(recipe(tmp_path, "a.yaml", str(path)))
    (phase,) = later_phases(config, 100)
    assert seconds_of([phase], phase.flops / 3600) == 1800.0
    assert seconds_of([phase, phase], phase.flops / 600) == 1200.0
    assert seconds_of([phase], 0.0) == 0.0


def test_a_chain_is_followed_and_a_circle_refused(tmp_path: Path) -> None:
    recipe(tmp_path, "c.yaml")
    recipe(tmp_path, "b.yaml", "c.yaml")  # next to the recipe that names it
    config = load_config(recipe(tmp_path, "a.yaml", str(tmp_path / "b.yaml")))
    assert [Path(p.recipe).name for p in later_phases(config, 100)] == ["b.yaml", "c.yaml"]
    recipe(tmp_path, "c.yaml", "b.yaml")
    with pytest.raises(ConfigError, match=r"next_recipe=b.yaml.*refers back"):
        later_phases(config, 100)
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        later_phases(load_config({"run": {"next_recipe": "nothing.yaml"}}), 100)


def test_shipped_first_phases_name_their_second(repository: Path) -> None:
    firsts = sorted((repository / "bertds/recipes").glob("*_phase1.yaml"))
    assert len(firsts) >= 5
    for first in firsts:
        (phase,) = later_phases(load_config(first), 30522)
        assert phase.recipe.endswith(first.name.replace("phase1", "phase2"))


def test_status_adds_what_follows_the_last_phase(tmp_path: Path) -> None:
    following = recipe(tmp_path, "b.yaml")
    run = make_run(tmp_path / "run", [train_line(s) for s in (10, 500)], done=False)
    assert read_status(run).later_seconds == 0.0
    text = (run / "config.yaml").read_text().replace("run: {", f"run: {{next_recipe: {following}, ")
    (run / "config.yaml").write_text(text)
    (run / "tokenizer").mkdir()
    (run / "tokenizer/vocab.txt").write_text("\n".join([*SPECIAL, *(f"x{n}" for n in range(95))]))
    status = read_status(run)
    (phase,) = later_phases(load_config({"run": {"next_recipe": str(following)}}), 100)
    assert status.later_seconds == pytest.approx(phase.flops / 0.02e12)
    assert seconds_of_all([status]) == pytest.approx(status.seconds_left + status.later_seconds)
