from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bertds.cli import main as command
from bertds.commands import recipes
from bertds.config.load import load_config
from bertds.config.locate import find_deepspeed_json
from bertds.errors import BertdsError
from bertds.system.shipped_files import PACKAGE

RECIPES = sorted(path.stem for path in (PACKAGE / "recipes").glob("*.yaml"))


def test_list_prints_all_recipes_with_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["recipes", "list"]) == 0
    text = capsys.readouterr().out
    heads = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert heads == RECIPES and "Izsak" in text and "(lamb_phase1_a100_80g.json)" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_show_prints_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["recipes", "show", "academic_24h"]) == 0
    text = capsys.readouterr().out
    assert "clock_hours: 24" in text and '"train_batch_size": 4096' in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_is_the_same_recipe_with_its_own_json(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(["recipes", "copy", name, "--to", str(tmp_path / "mine")]) == 0
    copied = tmp_path / "mine" / f"{name}.yaml"
    monkeypatch.chdir("/")
    own, shipped = load_config(copied), load_config(name)
    assert (own.model, own.schedule, own.data) == (shipped.model, shipped.schedule, shipped.data)
    json = find_deepspeed_json(own, str(copied), None)
    assert json.parent == tmp_path / "mine"
    assert json.read_bytes() == find_deepspeed_json(shipped, name, None).read_bytes()


def test_a_copy_with_another_json_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["recipes", "copy", "large_phase1", "--deepspeed_config", "lamb_phase1_h100.json"]
    assert command(words) == 0
    assert load_config(tmp_path / "large_phase1.yaml").run.deepspeed_config.endswith("h100.json")
    (tmp_path / "large_phase1.yaml").write_text("mine")
    assert command(words) == 2
    assert (tmp_path / "large_phase1.yaml").read_text() == "mine"
    assert "exists" in capsys.readouterr().err


def test_a_copy_that_fails_leaves_neither_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command, after some space was freed, would be refused: a file already exists."""
    write = recipes.write_text

    def full(path: Path, text: str) -> None:
        if path.suffix == ".json":
            raise BertdsError(f"{path}: the disk is full")
        write(path, text)

    words = ["recipes", "copy", "large_phase1", "--to", str(tmp_path)]
    monkeypatch.setattr(recipes, "write_text", full)
    assert command(words) == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert command(words) == 0


def test_the_printed_command_works_for_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["recipes", "copy", "large_phase1", "--to=-my recipes"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1].partition("train with: ")[2]
    assert shlex.split(printed)[:3] == ["bertds", "train", "--config"]
    assert Path(shlex.split(printed)[3]).is_file() and not shlex.split(printed)[3].startswith("-")
