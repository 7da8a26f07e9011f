"""Run folders that a crash, a full disk or another user has left odd are shown anyway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.cli import main
from bertds.commands.runs.status import in_lines
from bertds.config.load import lenient
from bertds.monitor.run_files import at, is_metric_line, read_metrics
from bertds.monitor.status import read_status
from bertds.report.page import page
from bertds.report.run_view import read_chains
from bertds.system.json_fields import parse_json
from bertds.system.yaml_text import load_yaml
from tests.support.made_runs import make_run, train_line

DEEP = "[" * 5_000


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"step": 30',
        "[]",
        "7",
        '{"step": "30"}',
        '{"loss": 1}',
        '{"step": -1}',
        "\x00\x00",
        json.dumps(train_line(30, loss="x")),
        json.dumps(train_line(30, lr=None)),
        json.dumps(train_line(30, seconds=[1])),
        json.dumps({**train_line(30), "step": 30.5}),
        json.dumps({**train_line(30), "step": 10**30}),
        json.dumps(train_line(30, lr=float("inf"))),
        json.dumps(train_line(30, trust_ratio={"a": [1, 2]})),
        json.dumps({**train_line(30), "step": True}),
        json.dumps({"step": 30, "split": "validation"}),
        json.dumps({"step": 30, "split": 7}),
        json.dumps(train_line(30, odd={"nested": 1})),
    ],
)
def test_an_odd_metric_line_is_left_out_and_counted(tmp_path: Path, capsys, text: str) -> None:
    run = make_run(tmp_path / "run", [train_line(10), train_line(20)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write(text + "\n")
    found = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in found.lines] == [10, 20] and found.skipped == 1
    status = read_status(run)
    assert status.step == 20 and "metrics.jsonl: 1 line ignored" in in_lines(status)
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["unreadable"]


def test_lines_that_training_writes_are_valid() -> None:
    usual = train_line(3, trust_ratio={"g": [0.1, None, 2]}, mfu=0.4, grad_norm=None)
    assert is_metric_line(usual)
    assert is_metric_line({**usual, "loss": None, "mlm_loss": None, "mlm_accuracy": None})
    assert is_metric_line({"step": 3, "split": "validation", "mlm_loss": 3, "mlm_accuracy": 0.1})


@pytest.mark.parametrize("name", ["environment.json", "DONE", "config.yaml", "deepspeed.json"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"a": ',
        DEEP,
        "[1]",
        "\xff\xfe",
        "a: &a [*a]",
        '{"starts": 7, "packages": [], "optimizer": 1}',
    ],
)
def test_a_torn_file_of_a_run_is_named(tmp_path: Path, capsys, name: str, text: str) -> None:
    run = make_run(tmp_path / "run", [train_line(10), train_line(20)])
    (run / name).write_bytes(text.encode("latin-1"))
    assert main(["status", str(run)]) == 0
    told = capsys.readouterr().out
    assert "step 20 of" in told
    if text[:1] != "{" and (text or name not in ("config.yaml",)) and name != "deepspeed.json":
        assert f"! {name}" in told
    html = page("title", read_chains([run]), [])  # the report without its pictures
    assert "Settings" in html or "All settings" in html


def test_a_recipe_is_shown_without_values_that_are_not_settings() -> None:
    nested = {"run": {"name": 7, "seed": "x", "old": [1]}, "data": 3, "later": {"key": 1}}
    kept, odd = lenient(nested)
    assert kept == {"run": {"name": "7"}, "later": {"key": 1}}
    assert odd == ["run.seed", "run.old", "data"]
    assert lenient(None) == ({}, [""]) or lenient({}) == ({}, [])


def test_nested_values_by_key() -> None:
    values = {"a": {"b": 1, "c": True}, "d": [1]}
    assert at(values, "a.b", int, 0) == 1 and at(values, "a.c", int, 0) == 0
    assert at(values, "a.b.c", int, 5) == 5 and at(values, "d", dict, {}) == {}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize("text", [BOMB, "a: &a {b: *a}", DEEP, "a: 2024-99-99", "{? [1]: 2}"])
def test_yaml_that_grows_is_refused_before_it_is_built(tmp_path: Path, capsys, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    for command in (["config", "show", str(recipe)], ["train", "--nemo-config", str(recipe)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith("bertds: error:") and said.count("\n") == 1 and "recipe.yaml" in said


def test_ordinary_aliases_are_read() -> None:
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}\n") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
