"""A name or a path means the same file for every command, from every folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.commands.config import main as config
from bertds.config.load import load_config
from bertds.config.locate import (
    find_deepspeed_json,
    find_json,
    find_recipe,
    find_recipe_or_json,
)
from bertds.config.recipe import Config
from bertds.config.run_settings import RunConfig
from bertds.errors import ConfigError


@pytest.mark.parametrize(
    "named", ["large_phase1", "large_phase1.yaml", "bertds/recipes/large_phase1.yaml"]
)
def test_a_shipped_recipe_is_found_from_any_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_recipe(named)
    assert found.samefile(repository / "bertds" / "recipes" / "large_phase1.yaml")
    json = find_deepspeed_json(load_config(named), named, None)
    assert json.parent.samefile(repository / "ds_configs")
    assert config(["show", named]) == config(["validate", named]) == 0


def test_a_recipe_or_a_json_is_found_by_its_name() -> None:
    assert find_recipe_or_json("lamb_phase1_h100") == find_json("lamb_phase1_h100")
    assert find_recipe_or_json("modern_base") == find_recipe("modern_base")
    assert find_recipe_or_json("modern_base.json") == find_json("modern_base")
    with pytest.raises(ConfigError, match=r"h10: no such recipe or DeepSpeed JSON \(did you mean"):
        find_recipe_or_json("lamb_phase1_h10")


def test_a_file_of_the_users_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "devlin_phase1.json").write_text("{}")
    assert find_json("ds_configs/devlin_phase1.json") == Path("ds_configs/devlin_phase1.json")
    (tmp_path / "mine").mkdir()
    recipe = tmp_path / "mine" / "mine.yaml"
    recipe.write_text("run: {deepspeed_config: own.json}")
    (tmp_path / "mine" / "own.json").write_text("{}")
    found = find_deepspeed_json(Config(run=RunConfig(deepspeed_config="own.json")), str(recipe), "")
    assert found == tmp_path / "mine" / "own.json"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("./large_phase1.yaml", "./large_phase1.yaml: no such recipe; a recipe of that name is at"),
        ("large_phas1", "large_phas1: no such recipe (did you mean large_phase1?)"),
        ("other/large_phase1.yaml", "no such recipe; a recipe of that name is at"),
        ("zzz", "zzz: no such recipe; shipped: academic_24h, base_phase1"),
    ],
)
def test_a_missing_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_recipe(named)
    assert message in str(caught.value)


def test_without_a_recipe_the_message_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"no recipe given; use --config .*bertds recipes list"):
        find_deepspeed_json(Config(), None, None)
    with pytest.raises(ConfigError, match="no DeepSpeed JSON given"):
        find_deepspeed_json(Config(), "my.yaml", None)
