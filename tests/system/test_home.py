"""``~`` is the home folder in every path, and a byte order mark is no part of a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.config.load import PATH_KEYS, load_config, read_yaml
from bertds.config.locate import find_json
from bertds.data.model_names import resolve
from bertds.engine.ds_config import load_deepspeed_json
from bertds.system.json_fields import parse_json, parse_text_json
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


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"cut \ud83d"', "cut \ufffd"),
        (r'"\ude00\uD83D"', "\ufffd\ufffd"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800"', "\\\ufffd"),
        ('"é"'.encode(), "é"),
        (rb'"\ud800"', "\ufffd"),
    ],
)
def test_half_of_a_surrogate_pair_is_a_replacement_character(
    written: str | bytes, read: str
) -> None:
    assert parse_text_json(written) == read


def test_bytes_of_surrogates_are_not_utf_8() -> None:
    with pytest.raises(UnicodeDecodeError):
        parse_text_json(b'"\xed\xa0\x80"')
