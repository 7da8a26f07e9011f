"""``~`` is the home folder in every path, and a byte order mark is no part of a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.config.load import PATH_KEYS, load_config, read_yaml
from bertds.config.locate import find_json
from bertds.data.model_names import resolve
from bertds.engine.ds_config import load_deepspeed_json
from bertds.system.json_fields import parse_json
from bertds.system.run_command import expand_home, guarded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_in_arguments(home: Path) -> None:
    seen: list[str] = []

    def main(argv: list[str]) -> int:
        seen.extend(argv)
        return 0

    assert (
        guarded(main, ["~/a", "--out=~/b", "run.dir=~/c", "a ~/b", "x~", "no=1", "--out", "~"]) == 0
    )
    assert seen == [
        f"{home}/a",
        f"--out={home}/b",
        f"run.dir={home}/c",
        "a ~/b",
        "x~",
        "no=1",
        "--out",
        str(home),
    ]
    assert expand_home("two words=~/x") == "two words=~/x"


def test_in_recipes_and_settings(home: Path) -> None:
    (home / "r.yaml").write_text("run: {dir: ~/runs}\ndata: {path: ~/data}\n")
    config = load_config("~/r.yaml", {"init.from": "~/phase1"})
    assert config.run.dir == f"{home}/runs" and config.data.path == f"{home}/data"
    assert config.init.from_ == f"{home}/phase1"
    for key in PATH_KEYS:
        section, name = key.split(".")
        value = getattr(
            getattr(load_config(None, {key: "~/x"}), section), name.replace("from", "from_")
        )
        assert value == f"{home}/x", key
    (home / "d.json").write_text("{}")
    assert find_json("~/d.json") == home / "d.json"
    (home / "model").mkdir()
    assert resolve("~/model") == home / "model"


def test_a_byte_order_mark(tmp_path: Path, tiny_json: Path) -> None:
    marked = b"\xef\xbb\xbf"
    json, recipe = tmp_path / "d.json", tmp_path / "r.yaml"
    json.write_bytes(marked + tiny_json.read_bytes())
    assert load_deepspeed_json(json).values == load_deepspeed_json(tiny_json).values
    recipe.write_bytes(marked + b"run: {seed: 7}\n")
    assert read_yaml(recipe) == {"run": {"seed": 7}}
    assert parse_json('\ufeff{"a": 1}') == parse_json(marked + b'{"a": 1}') == {"a": 1}
