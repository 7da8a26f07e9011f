from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from bertds.cli import main as command
from bertds.config.keys import all_keys
from bertds.config.load import load_config
from bertds.config.other_names import OTHER_NAMES
from bertds.engine import ds_config_keys
from bertds.engine.ds_config import load_deepspeed_json
from bertds.engine.ds_config_texts import _DEFAULTS, PARAMS, json_keys
from bertds.optim.settings import _PARAMETERS, OptimizerSettings, parse_optimizer


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command(["config", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("lr", ["deepspeed.optimizer.params.lr", "Peak learning rate", "--set deepspeed.KEY"]),
        ("learning_rate", ["deepspeed.optimizer.params.lr"]),
        ("optimizer", ["deepspeed.optimizer.type", "Lamb", "optimizer.params.betas"]),
        ("deepspeed.zero_optimization.stage", ["0 = nothing is partitioned", "One of 0, 1, 2, 3."]),
        ("zero_optimization.stage", ["0 = nothing is partitioned"]),
        ("deepspeed.scheduler", ["Not supported: the learning-rate", "schedule section"]),
        ("bf16.check_grad_overflow", ["Must stay true: this check is what skips"]),
        ("zero_hpz_partition_size", ["Only 0 or 1 is supported: larger values change the layout"]),
        (
            "offload_optimizer.ratio",
            ["Only 1 is supported: with a lower ratio, some of the moments"],
        ),
        ("legacy_stage1", ["Only false is supported: DeepSpeed has removed this option."]),
        (
            "elastic_checkpoint",
            ["Has no effect: this option concerns DeepSpeed's own checkpoints."],
        ),
        ("offload_param.device", ["Where to keep the data. One of none, cpu."]),
        ("torch_autocast.dtype", ["Data type of the computation: bfloat16 or bf16."]),
        ("batch_size", ["deepspeed.train_batch_size", "Global batch"]),
        ("wandb", ["tracking.wandb", "deepspeed.wandb", "configure trackers in the recipe"]),
        ("warmup_ratio", ["schedule.warmup_ratio"]),
    ],
)
def test_explain_names_the_file_that_has_a_key(
    key: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "explain", key)
    assert all(part in " ".join(text.split()) for part in parts)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.layer_norm_eps", "a number, above 0, at most 1; default 1.0e-12"),
        ("schedule.warmup_ratio", "a number or null, 0 to 1; default null"),
        ("schedule.total_steps", "an integer, 1 or more; default 1000"),
        ("guard.peer_timeout_seconds", "a number, 0, or 1 to 31,536,000; default 45.0"),
        ("model.next_sentence", "true or false; default true"),
    ],
)
def test_explain_shows_the_range_of_a_number(
    capsys: pytest.CaptureFixture[str], key: str, words: str
) -> None:
    assert f"{key}  ({words})" in said(capsys, "explain", key)


@pytest.mark.parametrize(
    ("key", "meant"), [("schedul", "schedule?"), ("lrr", "deepspeed.optimizer.params.lr?")]
)
def test_explain_refuses_an_unknown_key(
    key: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["config", "explain", key]) == 2
    assert f"did you mean {meant}" in capsys.readouterr().err


def test_names_in_other_projects_lead_to_keys_of_ours() -> None:
    ours = {*all_keys(), *(f"deepspeed.{name}" for name in json_keys())}
    assert set(OTHER_NAMES.values()) <= ours


def test_every_key_of_the_json_is_explained() -> None:
    """Accepted ones with their meaning, refused ones with the remedy."""

    def keys(table: dict[str, object], prefix: str) -> list[str]:
        return [
            name
            for key, rule in table.items()
            for name in (
                prefix + key,
                *(keys(rule, f"{prefix}{key}.") if isinstance(rule, dict) else ()),
            )
        ]

    texts = json_keys()
    assert set(keys(ds_config_keys.TOP, "")) <= set(texts) and all(texts.values())
    assert {p for names in _PARAMETERS.values() for p in names} == {
        name.removeprefix(PARAMS) for name in texts if name.startswith(PARAMS)
    }
    with_default = {item.name for item in fields(OptimizerSettings) if item.default is not MISSING}
    assert set(_DEFAULTS) == with_default


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("AdamW", ""), ("Lamb", "nvidia"), ("Lamb", "paper"), ("Lamb", "deepspeed"), ("Muon", "")],
)
def test_explained_defaults_are_those_of_the_parser(kind: str, variant: str) -> None:
    params = {"lr": 1.0, **({"variant": variant} if variant else {})}
    settings = parse_optimizer({"type": kind, "params": params})
    for name, text in _DEFAULTS.items():
        first, *others = text.split(", or ")
        own = [o for o in others if variant and variant in o.split()]
        said_value = (own[0].split()[0] if own else first).replace("no limit", "Infinity")
        found = getattr(settings, name)
        if name == "variant":
            assert variant == "" or said_value == "nvidia"
        else:
            value = json.loads(said_value)
            assert (list(found) if isinstance(found, tuple) else found) == value, name


def test_show_prints_both_files_and_the_differences(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(
        capsys, "show", "large_phase1", "--set", "run.seed=7", "deepspeed.optimizer.params.lr=0.1"
    )
    assert "  seed: 7  # default: 42" in text and "  max_hours: null\n" in text
    assert "# deepspeed.optimizer.params.lr: 0.1" in text
    assert "# deepspeed.train_batch_size: 65536" in text
    assert "# 14 keys differ from their defaults" in text
    copy = tmp_path / "copy.yaml"
    copy.write_text(text)  # it is a recipe still
    assert load_config(copy) == load_config("large_phase1", {"run.seed": 7})
    assert sum("# default:" in line for line in text.splitlines()) == 14


def test_show_of_a_json(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(said(capsys, "show", "lamb_phase1_h100.json"))
    assert shown == load_deepspeed_json("ds_configs/lamb_phase1_h100.json").values
    assert command(["config", "show", "lamb_phase1_h100.json", "--set", "run.seed=1"]) == 2


def test_show_of_a_recipe_without_a_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("run: {seed: 1}\n")
    text = said(capsys, "show", str(tmp_path / "own.yaml"))
    assert yaml.safe_load(text)["run"]["seed"] == 1 and "does not name a DeepSpeed JSON" in text


def test_validate_checks_recipes_with_their_jsons_and_jsons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"train_batch_size": 8, "gradient_cliping": 1.0}')
    recipe = tmp_path / "r.yaml"
    recipe.write_text("run: {deepspeed_config: bad.json}\n")
    files = ["large_phase1", "devlin_phase1.json", str(bad), str(recipe), "no_such"]
    assert command(["config", "validate", *files]) == 2
    captured = capsys.readouterr()
    assert captured.out == "large_phase1: valid\ndevlin_phase1.json: valid\n"
    errors = captured.err.splitlines()
    assert len(errors) == 3 and all("gradient_cliping" in line for line in errors[:2])
    assert "no such recipe" in errors[2]


def test_diff_names_keys_of_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "diff", "large_phase1", "large_phase2")
    assert 'run.next_recipe: bertds/recipes/large_phase2.yaml -> ""\n' in text
    assert "data.sequence_length: 128 -> 512" in text
    assert "deepspeed.train_batch_size: 65536 -> 32768" in text


def test_diff_writes_values_as_their_files_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "diff", "large_phase1", "small_cpu")
    assert "schedule.clock_hours: null -> " in text
    assert "model.next_sentence: true -> false" in text
    assert "deepspeed.optimizer.params.variant: nvidia -> (not set)" in text
