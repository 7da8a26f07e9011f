"""Time to a held-out loss: where a run ends, what its record says, and what a changed one does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bertds.cli import main as bertds
from bertds.config.load import load_config
from bertds.errors import DataError
from bertds.monitor.run_files import read_metrics
from bertds.pipeline.speedrun import read_records, record_of, table, track_of
from bertds.train import entry

EASY = 4.15
"""Nats: word frequencies alone give 4.05; random weights about 4.3."""


@pytest.fixture
def run(command: Callable[..., list[str]], tmp_path: Path) -> Path:
    """A run that ends where its held-out loss is at most EASY."""
    extra = (f"validation.stop_at_loss={EASY}", "validation.every_steps=2", "log.every_steps=2")
    assert entry(command("run", "schedule.total_steps=400", *extra)) == 0
    return tmp_path / "run"


def test_a_run_ends_at_the_first_validation_that_reaches_the_loss(
    run: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [line["mlm_loss"] for line in read_metrics(run / "metrics.jsonl").validation]
    assert len(losses) > 1 and losses[-1] <= EASY < min(losses[:-1])
    done = json.loads((run / "DONE").read_text())
    assert done["step"] == 2 * len(losses) < 400 and done["best_mlm_loss"] == losses[-1]
    # Done is done, though steps are left.
    before = (run / "metrics.jsonl").read_text()
    extra = (f"validation.stop_at_loss={EASY}", "validation.every_steps=2", "log.every_steps=2")
    assert entry(command("run", "schedule.total_steps=400", *extra)) == 0
    assert (run / "metrics.jsonl").read_text() == before


def test_the_record_has_the_figures_of_the_run(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    record = record_of(run, tiny_data, EASY, "someone")
    metrics = read_metrics(run / "metrics.jsonl")
    assert record.steps == metrics.validation[-1]["step"]
    assert record.tokens == metrics.train[-1]["tokens"]
    assert record.seconds == round(sum(line["seconds"] for line in metrics.train), 1)
    assert record.loss == metrics.validation[-1]["mlm_loss"] and record.by == "someone"
    assert record.sha256 == record.digest()
    with pytest.raises(DataError, match=r"target 0\.5 was not reached; the lowest held-out loss"):
        record_of(run, tiny_data, 0.5, "someone")

    file = tmp_path / "records.jsonl"
    faster = dataclasses.replace(record, by="faster", seconds=0.01)
    faster = dataclasses.replace(faster, sha256=faster.digest())
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in (record, faster)))
    assert read_records(file) == [record, faster]
    rows = table(read_records(file)).splitlines()
    assert "faster" in rows[1] and "someone" in rows[2]
    file.write_text(file.read_text().replace('"seconds": 0.01', '"seconds": 0.001'))
    with pytest.raises(DataError, match="line 2 has been changed"):
        read_records(file)
    file.write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not a record"):
        read_records(file)


def test_the_track_consists_of_what_decides_the_held_out_loss(tiny_data: Path) -> None:
    data = {"path": str(tiny_data)}
    track = track_of(tiny_data, load_config({"data": data}), 4.0)
    same = {"data": data, "schedule": {"total_steps": 5}, "model": {"num_hidden_layers": 2}}
    assert track_of(tiny_data, load_config(same), 4.0) == track
    assert track_of(tiny_data, load_config({"data": data}), 3.9) != track
    for key, value in (("sequence_length", 64), ("masked_lm_prob_end", 0.2), ("pairs", "sop")):
        other = load_config({"data": {**data, key: value}})
        assert track_of(tiny_data, other, 4.0) != track, key


@pytest.mark.slow
def test_the_command_trains_writes_a_line_once_and_prints_the_table(
    tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    toy = [
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=32",
        "schedule.clock_hours=null",
        "schedule.total_steps=50",
        "data.masked_lm_prob_steps=50",
        "log.progress=none",
    ]
    command = [
        "speedrun",
        "--work",
        str(tmp_path / "work"),
        "--data",
        str(tiny_data),
        "--target",
        "4.2",
        "--by",
        "me",
        "--records",
        str(records),
        "--set",
        *toy,
    ]
    for _ in range(2):
        assert bertds(command) == 0
        assert " me, " in capfd.readouterr().out
        assert len(read_records(records)) == 1
    assert bertds(["speedrun", "--table", "--records", str(records)]) == 0
    assert read_records(records)[0].track in capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seconds", "1"),
        ("seconds", float("nan")),
        ("steps", 1.5),
        ("steps", 10**400),
        ("tokens", True),
        ("target", None),
        ("track", 5),
        ("device", {"a": 1}),
        ("by", "\x1b[2Jme"),
        ("by", "me\nyou"),
    ],
)
def test_a_record_of_other_values_is_refused_although_its_checksum_is_right(
    tmp_path: Path, repository: Path, key: str, value: Any
) -> None:
    record = read_records(repository / "docs" / "records.jsonl")[0]
    odd = dataclasses.replace(record, **{key: value})
    odd = dataclasses.replace(odd, sha256=odd.digest())
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps(asdict(record)) + "\n" + json.dumps(asdict(odd)) + "\n")
    with pytest.raises(DataError, match="line 2 is not a record"):
        read_records(file)


def test_the_records_of_the_documentation_are_unchanged(repository: Path) -> None:
    records = read_records(repository / "docs" / "records.jsonl")
    assert records and all(record.loss <= record.target for record in records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "0"], "--target 0: must be a loss in nats above 0"),
        (["--by", "me\nyou"], "must be printable text, on one line"),
        (["--records", "nowhere/r.jsonl"], "nowhere/r.jsonl: its folder does not exist"),
        (["--records", "."], ".: cannot be read"),
        (["--work", "file"], "--work file: is a file; choose a folder"),
        (["--recipe", "large_cpu"], "large_cpu: no such recipe"),
        (["--set", "validation.path=easy"], "this command sets validation.path itself"),
        (["--set", "data.path=other"], "this command sets data.path itself"),
        (["--data", "NO_HELD_OUT"], "has no held-out documents"),
    ],
)
def test_a_record_that_cannot_be_written_is_refused_before_the_run(
    options: list[str],
    message: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(*_: object) -> None:
        raise AssertionError("a stage has begun")

    monkeypatch.setattr("bertds.commands.speedrun.prepare_excerpt", begin)
    monkeypatch.setattr("bertds.commands.speedrun.train", begin)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    if "NO_HELD_OUT" in options:
        options = ["--data", "data"]
        manifest = json.loads((tiny_data / "manifest.json").read_text())
        manifest["splits"].pop("validation")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    assert bertds(["speedrun", "--work", "work", *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "work").exists()


def test_a_user_without_a_login_name_is_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert bertds(["speedrun", "--work", str(tmp_path)]) == 2
    assert "--by NAME is required: this user has no login name" in capsys.readouterr().err


def test_a_table_of_no_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bertds(["speedrun", "--table", "--records", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
