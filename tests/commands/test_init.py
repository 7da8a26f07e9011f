"""``bertds init`` asks, and what it writes runs as it is printed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from bertds.cli import main as command
from bertds.commands import init
from bertds.config.load import load_config
from bertds.config.locate import find_deepspeed_json
from bertds.engine.ds_config import load_deepspeed_json
from bertds.errors import ConfigError
from bertds.pipeline.new_project import FILES, Corpus, guess_kind


def printed(folder: Path) -> list[list[str]]:
    text = (folder / "README.md").read_text().split("```bash\n")[1].split("```")[0]
    return [shlex.split(line) for line in text.splitlines()]


def test_without_questions(
    tmp_path: Path, tiny_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    words = ["--text", str(tiny_text), "--gpu", "h100", "--gpus", "8", "--hours", "12"]
    assert command(["init", str(folder), *words]) == 0
    assert {path.name for path in folder.iterdir()} == set(FILES)
    recipe = folder / "recipe.yaml"
    config = load_config(recipe)
    assert config.schedule.clock_hours == 12
    json = load_deepspeed_json(find_deepspeed_json(config, str(recipe), None))
    assert json.path == str(folder / "deepspeed.json")
    site = (folder / "site.env").read_text()
    assert "SBATCH_GPUS_PER_NODE=8" in site and f"BERTDS_PHASE1={recipe}" in site
    lines = printed(folder)
    assert [line[1] for line in lines[:4]] == ["prep", "train", "export", "evaluate"]
    assert lines[0][2:4] == ["--text", str(tiny_text)] and "--processes" in lines[1]
    assert "about" in capsys.readouterr().out
    assert command(["init", str(folder), *words]) == 2  # nothing is overwritten


def test_questions_are_asked_again_until_the_answer_is_good(
    tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["/no/such", str(tiny_text), "h1000", "cpu", "soon", "0.1"])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert command(["init", str(tmp_path / "p")]) == 0
    assert len(asked) == 6 and next(answers, None) is None
    assert load_config(tmp_path / "p" / "recipe.yaml").schedule.clock_hours == 0.1


@pytest.mark.parametrize("number", ["0", "-1", "\u00b2", "\u0663", "1e3", "9" * 5000])
def test_an_invalid_number_of_gpus_is_asked_for_again(
    tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    answers = iter([number, "2"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    line = ["init", str(tmp_path / "p"), "--text", str(tiny_text), "--gpu", "a100", "--hours", "1"]
    assert command(line) == 0
    assert next(answers, None) is None


def test_a_missing_answer_without_a_terminal_is_named(
    tmp_path: Path,
    tiny_text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert command(["init", str(tmp_path / "p"), "--text", str(tiny_text)]) == 2
    assert "--gpu is missing" in capsys.readouterr().err and not (tmp_path / "p").exists()
    monkeypatch.setattr(init, "devices_here", lambda: ("a100", 4))
    assert command(["init", str(tmp_path / "p"), "--text", str(tiny_text), "--yes"]) == 0
    assert "4 x a100" in (tmp_path / "p" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hours", "0"], "--hours 0"),
        (["--gpus", "0"], "--gpus 0"),
        (["--model", "huge"], "--model huge"),
        (["--gpu", "h1000"], "--gpu h1000"),
        (["--corpus", "/no/such"], "/no/such: no such file"),
        (["--books", "/no/such"], "--books /no/such"),
        (["--corpus", "wikitext"], "--hf wikitext"),
    ],
)
def test_wrong_options_write_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    tiny_text: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--gpu", "cpu", "--hours", "0.1", "--text", str(tiny_text), *words]
    assert command(["init", str(tmp_path / "p"), *given]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "p").exists()


def test_a_corpus_without_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its five commands would fail at the first."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    for option, given in (("--corpus", "empty.txt"), ("--text", "folder")):
        words = ["init", str(tmp_path / "p"), "--gpu", "cpu", "--yes", option]
        assert command([*words, str(tmp_path / given)]) == 2
        assert f"{given}: contains no text" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_kinds_are_guessed(tmp_path: Path) -> None:
    def make(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 9000)
        return str(path)

    for name, kind in (
        ("enwiki-pages-articles.xml.bz2", "wiki"),
        ("a.jsonl.gz", "jsonl"),
        ("b.parquet", "parquet"),
        ("c.txt", "text"),
        ("AA/wiki_00", "wiki"),
    ):
        assert guess_kind(make(name)) == kind
    make("shelf/1.txt")
    make("shelf/2.txt")
    assert guess_kind(str(tmp_path / "shelf")) == "books"
    make("mixed/1.txt")
    make("mixed/2.jsonl")
    with pytest.raises(ConfigError, match="--jsonl, --text"):
        guess_kind(str(tmp_path / "mixed"))
    corpus = Corpus({"text": [str(tmp_path / "c.txt")], "jsonl": [str(tmp_path / "a.jsonl.gz")]})
    assert corpus.tokens == pytest.approx((9000 + 4 * 9000) / 4.5) and corpus.vocab_size == 2048


def test_no_book_is_held_out_if_there_are_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in "abc":
        sentences = " ".join(f"The {name} of {n} is here and {name} is there." for n in range(200))
        (shelf / f"{name}.txt").write_text(f"{sentences}\n")
    words = ["--corpus", str(shelf), "--gpu", "cpu", "--hours", "0.1"]
    assert command(["init", str(tmp_path / "p"), *words]) == 0
    assert "fewer than 4 books" in capsys.readouterr().out
    lines = printed(tmp_path / "p")
    assert lines[3][-2:] == ["--split", "train"]
    monkeypatch.chdir(tmp_path / "p")
    prep = " ".join(lines[0]).replace("--train-vocab 2048", "--train-vocab 300 --workers 1")
    assert command(prep.split()[1:]) == 0
    (shelf / "d.txt").write_text("x")
    assert Corpus({"books": [str(shelf)]}).held_out == 0.05


@pytest.mark.slow
def test_the_five_commands_run_as_printed(
    tmp_path: Path,
    tiny_text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "p"
    words = ["--text", str(tiny_text), "--gpu", "cpu", "--hours", "0.0025"]
    assert command(["init", str(folder), *words]) == 0
    monkeypatch.chdir(folder)
    for line in printed(folder):
        if "|" in line:
            (folder / "in.txt").write_text(line[1] + "\n")
            line = [*line[line.index("|") + 1 :], "--input", "in.txt"]
        assert command(line[1:]) == 0, line
    out = capsys.readouterr()
    assert '"masks"' in out.out
    shown = re.findall(r"step \d+/(\d+) ", out.err)
    assert shown and all(int(total) < 100_000 for total in shown)  # as far as the clock lets it
