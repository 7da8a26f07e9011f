"""The ten-minute model at toy size: every stage, the table, and a second call repeats nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bertds.cli import main as bertds
from bertds.config.load import load_config
from bertds.errors import DataError
from bertds.pipeline.ten_minutes import table

WORDS = [f"{a}{b}{c}" for a in "bdfg" for b in "aeio" for c in "lmnr"]
TOY = [
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "schedule.clock_hours=null",
    "schedule.total_steps=3",
    "data.masked_lm_prob_steps=2",
    "deepspeed.train_batch_size=8",
    "deepspeed.train_micro_batch_size_per_gpu=8",
    "log.progress=none",
]


def write_text(path: Path) -> Path:
    rng = random.Random(3)
    documents = [
        "\n".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(8))
        for _ in range(120)
    ]
    path.write_text("\n\n".join(documents) + "\n")
    return path


def write_blimp(folder: Path) -> Path:
    folder.mkdir()
    common = {"field": "syntax", "linguistics_term": "agreement"}
    for uid in ("one", "two"):
        pairs = [
            {
                "sentence_good": f"{WORDS[n]} {WORDS[n + 1]}",
                "sentence_bad": f"{WORDS[n]} !",
                "UID": uid,
                **common,
            }
            for n in range(6)
        ]
        (folder / f"{uid}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def write_glue(folder: Path) -> Path:
    (folder / "SST-2").mkdir(parents=True)
    for split, rows in (("train", 24), ("dev", 8)):
        lines = [f"{WORDS[n]} {WORDS[n + 2]}\t{n % 2}" for n in range(rows)]
        (folder / "SST-2" / f"{split}.tsv").write_text(
            "sentence\tlabel\n" + "\n".join(lines) + "\n"
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ten_minutes_h100", "ten_minutes_h100_modern"])
def test_all_stages_at_toy_size_and_nothing_twice(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    command = [
        "ten-minutes",
        "--work",
        str(work),
        "--text",
        str(write_text(tmp_path / "text.txt")),
        "--vocabulary",
        "300",
        "--recipe",
        recipe,
        "--blimp",
        str(write_blimp(tmp_path / "blimp")),
        "--limit",
        "4",
        "--glue",
        str(write_glue(tmp_path / "glue")),
        "--set",
        *TOY,
    ]
    assert bertds(command) == 0
    out = capfd.readouterr().out
    assert f"ours: {recipe}" in out and "GPT-BERT on 10 M words" in out
    blimp = json.loads((work / "run" / "blimp.json").read_text())
    assert blimp["pairs"] == 8 and f" {blimp['overall']:.1f} " in out
    assert "Our BLiMP score: first 4 pairs of each file, 2 of 67 paradigms." in out
    scores = json.loads((work / "finetune" / "sst2" / "results.json").read_text())["scores"]
    assert f"{100 * scores['dev']['accuracy']['mean']:.1f}" in out
    stamps = {
        path: path.stat().st_mtime_ns
        for name in (
            "data/manifest.json",
            "run/DONE",
            "model/model.safetensors",
            "run/blimp.json",
            "finetune/sst2/results.json",
        )
        for path in [work / name]
    }
    assert bertds(command) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_an_empty_table_has_dashes_and_published_rows(tmp_path: Path) -> None:
    lines = table(tmp_path, "ten_minutes_h100").splitlines()
    assert lines[0].split() == ["model", "BLiMP", "sst2", "mrpc", "cola", "rte", "mean"]
    assert lines[1].split()[-6:] == ["-"] * 6 and "9 min of training" in lines[1]
    assert "65.1 to 67.3" in lines[2] and lines[4].split()[-2:] == ["60.6", "60.3"]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "{}",
        '{"overall": "x", "limit": {}, "scores": 5}',
        '{"overall": null, "paradigms": 5, "scores": {"dev": 5}, "task": "sst2"}',
        '{"overall": NaN, "scores": {"dev": {"accuracy": 5}}, "task": "sst2"}',
        '{"overall": true, "scores": {"dev": {"accuracy": {"mean": "x"}}}, "task": "sst2"}',
        '{"overall": [1], "scores": {"dev": {"accuracy": {"mean": 1}}}, "task": [1]}',
    ],
)
def test_results_of_another_form_count_as_not_measured(tmp_path: Path, text: str) -> None:
    for file in (tmp_path / "run/blimp.json", tmp_path / "finetune/sst2/results.json"):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    lines = table(tmp_path, "ten_minutes_h100").splitlines()
    assert lines[1].split()[-6:] == ["-"] * 6


@pytest.mark.parametrize("data", [b"[" * 5000, b"\xff\xfe", b'{"overall": 5'])
def test_results_that_cannot_be_read_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/blimp.json").write_bytes(data)
    with pytest.raises(DataError, match=r"blimp.json: cannot be read .*; remove it and start"):
        table(tmp_path, "ten_minutes_h100")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--text", "t.txt", "--blimp", "nowhere"], "--blimp nowhere: no such folder"),
        (["--text", "t.txt", "--glue", "nowhere"], "--glue nowhere: no such folder"),
        (["--text", "t.txt", "--blimp", ".", "--limit", "-1"], "0 (all) or more"),
        ([], "no text to train on; give --wiki, --books or --text"),
        (["--text", "t.txt", "--blimp", "empty"], "--blimp empty: contains no *.jsonl files"),
        (["--text", "t.txt", "--glue", "empty"], "contains none of the folders SST-2, MRPC"),
        (["--text", "t.txt", "--glue", "half"], "half/SST-2: no file to score on"),
        (["--text", "t.txt", "--glue", "cut"], "cut/SST-2/dev.tsv"),
        (["--text", "t.txt", "--recipe", "ten_hours"], "ten_hours: no such recipe"),
        (["--text", "t.txt", "--set", "schedule.clock_hour=1"], "schedule.clock_hour"),
        (["--text", "t.txt", "--work", "t.txt"], "--work t.txt: is a file; choose a folder"),
        (["--text", "t.txt", "--set", "run.dir=x"], "--set run.dir=x: this command sets run.dir"),
    ],
)
def test_missing_inputs_are_reported_before_ten_minutes_are_spent(
    arguments: list[str],
    wrong: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.txt").write_text("A line.\n")
    (write_glue(tmp_path / "half") / "SST-2" / "dev.tsv").unlink()
    (write_glue(tmp_path / "cut") / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nbad\n")
    code: object
    try:
        code = bertds(["ten-minutes", "--work", str(tmp_path / "work"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert wrong in capsys.readouterr().err and not (tmp_path / "work").exists()


def test_both_recipes_end_by_the_clock_and_differ_in_the_encoder_alone() -> None:
    one, two = load_config("ten_minutes_h100"), load_config("ten_minutes_h100_modern")
    assert one.schedule == two.schedule and one.data == two.data
    assert one.schedule.clock_hours == 0.15 and two.model.style == "modern"
