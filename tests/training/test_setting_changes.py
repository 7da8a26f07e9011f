"""What a continued or finished run may be asked for; whole runs are in tests/end_to_end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertds.config.keys import all_keys
from bertds.config.load import load_config, to_dict
from bertds.config.recipe import Config
from bertds.errors import ConfigError, DataError
from bertds.monitor.setting_lines import Change, as_line, read_changes
from bertds.training.setting_changes import RULES, changes, is_done, rule_of

JSON: dict[str, Any] = {
    "train_batch_size": 12,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.002, "betas": [0.9, 0.98]}},
    "zero_optimization": {"stage": 1},
}


def recipe(tmp_path: Path, **values: Any) -> Config:
    nested: dict[str, dict[str, Any]] = {"run": {"dir": str(tmp_path)}}
    for key, value in values.items():
        section, name = key.split("__")
        nested.setdefault(section, {})[name] = value
    return load_config(nested)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose last start had the recipe's defaults and JSON."""
    text = yaml.safe_dump(to_dict(recipe(tmp_path)))
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "deepspeed.json").write_text(json.dumps(JSON))
    return tmp_path


def deepspeed(**optimizer: Any) -> dict[str, Any]:
    return {**JSON, "optimizer": {**JSON["optimizer"], **optimizer}}


def test_every_key_of_a_recipe_has_a_rule() -> None:
    assert {rule_of(key) for key in all_keys()} == {"fixed", "announced", "free"}
    assert {field.name for field in dataclasses.fields(Config)} <= set(RULES)
    with pytest.raises(KeyError):
        rule_of("modle.hidden_size")


def test_the_same_settings_change_nothing(run: Path) -> None:
    assert changes(run, recipe(run), JSON) == []


@pytest.mark.parametrize(
    ("values", "json_values", "named"),
    [
        ({"run__seed": 7}, JSON, "run.seed=42, but now run.seed=7"),
        ({"data__sequence_length": 64}, JSON, "data.sequence_length=128"),
        ({}, deepspeed(type="Lamb"), "deepspeed.optimizer.type=AdamW, but now"),
        ({}, {**JSON, "train_batch_size": 24}, "deepspeed.train_batch_size=12, but now"),
    ],
)
def test_fixed_settings_are_refused_by_name(
    run: Path, values: dict[str, Any], json_values: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        changes(run, recipe(run, **values), json_values)


def test_the_variant_of_lamb_is_fixed_whether_written_or_not(run: Path) -> None:
    silent, nvidia, paper = (
        deepspeed(type="Lamb", params={"lr": 0.002, **more})
        for more in ({}, {"variant": "nvidia"}, {"variant": "paper"})
    )
    for before, now in ((paper, silent), (silent, paper), (nvidia, paper)):
        (run / "deepspeed.json").write_text(json.dumps(before))
        with pytest.raises(ConfigError, match=r"optimizer\.params\.variant=\w+, but now"):
            changes(run, recipe(run), now)
    for before, now in ((silent, nvidia), (nvidia, silent)):
        (run / "deepspeed.json").write_text(json.dumps(before))
        assert changes(run, recipe(run), now) == []


def test_settings_that_change_the_result_are_announced_and_others_are_not(run: Path) -> None:
    lower = {**deepspeed(params={"lr": 0.0001, "betas": [0.9, 0.98]}), "gradient_clipping": 0.5}
    lower |= {"train_micro_batch_size_per_gpu": 6, "zero_optimization": {"stage": 2}}
    config = recipe(run, schedule__total_steps=2000, log__every_steps=5, data__prefetch_steps=4)
    assert [(c.name, c.before, c.now) for c in changes(run, config, lower)] == [
        ("schedule.total_steps", 1000, 2000),
        ("lr", 0.002, 0.0001),
        ("deepspeed.gradient_clipping", None, 0.5),
    ]


def test_an_old_folder_without_its_json_is_judged_by_the_recipe(run: Path) -> None:
    (run / "deepspeed.json").unlink()
    assert changes(run, recipe(run), deepspeed(type="Lamb")) == []


def test_a_finished_run(run: Path) -> None:
    assert not is_done(run, recipe(run), JSON)
    (run / "DONE").write_text('{"step": 1000}')
    assert is_done(run, recipe(run), JSON)
    assert is_done(run, recipe(run, log__every_steps=5), JSON)
    assert not is_done(run, recipe(run, schedule__total_steps=1001), JSON)
    with pytest.raises(ConfigError, match="type=AdamW, but now"):
        is_done(run, recipe(run), deepspeed(type="Lamb"))
    with pytest.raises(ConfigError, match=r"done at step 1000, so lr=0\.1 would have no effect"):
        is_done(run, recipe(run), deepspeed(params={"lr": 0.1, "betas": [0.9, 0.98]}))
    with pytest.raises(ConfigError, match=r"schedule\.total_steps=900 would have no effect"):
        is_done(run, recipe(run, schedule__total_steps=900), JSON)


@pytest.mark.parametrize(
    "key", ["data.path", "data.vocab", "validation.path", "validation.prompts"]
)
def test_a_finished_run_with_a_missing_file_in_its_settings_is_refused(run: Path, key: str) -> None:
    (run / "DONE").write_text('{"step": 1000}')
    asked = {key.replace(".", "__"): "/nowhere"}
    with pytest.raises(DataError, match=f"{key}=/nowhere: no such file"):
        is_done(run, recipe(run, **asked), JSON)
    assert is_done(run, recipe(run, data__vocab="bert-base-uncased"), JSON)


def test_a_finished_fp16_run_of_an_older_version_stays_done(run: Path) -> None:
    """Its gradients were summed in fp16, because the key was not filled in then."""
    (run / "DONE").write_text('{"step": 1000}')
    filled_in = {**JSON, "data_types": {"grad_accum_dtype": "fp32"}}
    assert is_done(run, recipe(run), filled_in)
    assert [c.name for c in changes(run, recipe(run), filled_in)] == [
        "deepspeed.data_types.grad_accum_dtype"
    ]


def test_changes_are_kept_and_read_again(run: Path) -> None:
    lines = [
        as_line(0, 1, "t", []),
        as_line(400, 2, "t", [Change("deepspeed.optimizer.params.lr", 0.002, 0.0001)]),
        '{"step": 1e999, "changes": {"a": [1, 2]}}',
        '{"step": 500, "chan',
    ]
    (run / "settings.jsonl").write_text("\n".join(lines))
    assert read_changes(run) == [(400, Change("deepspeed.optimizer.params.lr", 0.002, 0.0001))]
    assert read_changes(run / "nowhere") == []
