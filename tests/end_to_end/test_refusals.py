"""What a run refuses before its first step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bertds.checkpoint.find import step_folders
from bertds.monitor.run_files import read_metrics
from bertds.pretrained.load import load_pretrained
from bertds.pretrained.model_card import model_card
from bertds.report.write import write_report
from bertds.train import entry
from tests.support.read_runs import losses


def bad(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert entry(command) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if line.startswith("bertds: error:"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.sed=1", "unknown key run.sed (did you mean run.seed?)"),
        ("rum.seed=1", "did you mean"),
        ("nothing.like_it=1", "the sections are checkpoint, data"),
        ("log.xyz=1", "bertds config explain log"),
        (
            "deepspeed.gradient_cliping=1",
            "error: --set deepspeed.gradient_cliping is not a DeepSpeed key",
        ),
        ("deepspeed.optimizer.params.lr=fast", "--set deepspeed.optimizer.params.lr='fast' must"),
        ("deepspeed.scheduler.type=WarmupLR", "scheduler"),
        ("deepspeed.train_batch_size=13", "the nearest multiples are: train_batch_size=12 or 14"),
        ("deepspeed.optimizer.type=Sgd9", "Sgd9"),
        ("data.path=/does/not/exist", "/does/not/exist"),
        ("init.from=/does/not/exist", "/does/not/exist"),
        ("data.max_predictions_per_sequence=40", "must be below"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    assignment: str,
    message: str,
) -> None:
    arguments = command("run", assignment)
    if assignment.startswith("data.path"):
        arguments = [a for a in arguments if not (a.startswith("data.path=") and a != assignment)]
    assert message in bad(arguments, capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_run_folder_in_use_is_refused(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from bertds.system.folder_lock import FolderLock

    (tmp_path / "run").mkdir()
    with FolderLock(tmp_path / "run", "a training run"):
        assert f"in use by a training run (process {os.getpid()}" in bad(command("run"), capsys)


def test_a_run_whose_folder_was_taken_over_writes_nothing_more(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a lost node: Slurm has started the job elsewhere, the old process still lives."""
    from bertds.system.atomic_files import write_json
    from bertds.training import build

    lock = tmp_path / "run" / ".lock"
    theirs = {"host": "elsewhere", "pid": 1, "start": "1", "job": "77", "purpose": "a run"}
    monkeypatch.setattr(build, "announce", lambda *_, **__: write_json(lock, theirs))
    assert "in use by a run (process 1 on elsewhere, Slurm job 77)" in bad(command("run"), capsys)
    assert json.loads(lock.read_text()) == theirs
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_continued_run_refuses_another_seed_and_another_vocabulary(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_text: Path,
) -> None:
    assert entry(command("run", "run.max_hours=0")) == 75
    capsys.readouterr()
    message = bad(command("run", "run.seed=7"), capsys)
    assert "this run started with run.seed=42, but now run.seed=7" in message
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    arguments = [a for a in command("run") if not a.startswith("data.path=")]
    message = bad([*arguments, f"data.path={tiny_text}", f"data.vocab={other}"], capsys)
    assert "trained with vocabulary" in message and "(65 tokens)" in message


def test_a_start_with_other_settings_says_what_changes_or_is_refused(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert entry(command("run", "schedule.total_steps=2")) == 0
    assert entry(command("run", "schedule.total_steps=2")) == 0
    assert "already done" in capsys.readouterr().err
    message = bad(command("run", "schedule.total_steps=2", "deepspeed.optimizer.type=Lamb"), capsys)
    assert "deepspeed.optimizer.type=AdamW, but now deepspeed.optimizer.type=Lamb" in message
    same = command("run", "schedule.total_steps=2")
    elsewhere = ["data.path=/nowhere" if a.startswith("data.path=") else a for a in same]
    message = bad(elsewhere, capsys)
    assert message == "bertds: error: data.path=/nowhere: no such file or folder"
    assert (run / "DONE").is_file()
    longer = ("schedule.total_steps=3", "deepspeed.optimizer.params.lr=0.001")
    assert entry(command("run", *longer)) == 0
    error = capsys.readouterr().err
    assert "lr 0.005 -> 0.001 from step 2" in error
    assert "schedule.total_steps 2 -> 3 from step 2" in error
    assert (run / "DONE").is_file() and len(losses(run)) == 3
    starts = [json.loads(line) for line in (run / "settings.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[1]["changes"]["schedule.total_steps"] == [2, 3]


def test_a_run_whose_settings_file_is_gone_is_compared_with_its_checkpoint(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Otherwise the weights that another model has too would be loaded, and the others lost."""
    run, steps = tmp_path / "run", "schedule.total_steps=2"
    assert entry(command("run", steps)) == 0
    (run / "config.yaml").unlink()
    capsys.readouterr()
    message = bad(command("run", "schedule.total_steps=3", "model.num_hidden_layers=1"), capsys)
    assert f"{run}: this run started with model.num_hidden_layers=2, but now" in message
    message = bad(command("run", "schedule.total_steps=3", "run.seed=7"), capsys)
    assert "run.seed=42, but now run.seed=7" in message
    assert entry(command("run", "schedule.total_steps=3")) == 0
    assert "schedule.total_steps 2 -> 3 from step 2" in capsys.readouterr().err


def test_a_learning_rate_changed_on_an_interrupted_run_is_reported_everywhere(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, lower = tmp_path / "run", "deepspeed.optimizer.params.lr=0.0001"
    assert entry(command("run", "run.max_hours=1e-6")) == 75
    stopped = int(step_folders(run / "checkpoints")[0].name[5:])
    assert 0 < stopped < 6 and not (run / "DONE").exists()
    capsys.readouterr()
    assert entry(command("run", lower)) == 0
    announced = f"lr 0.005 -> 0.0001 from step {stopped}"
    assert capsys.readouterr().err.count(announced) == 1
    assert announced in (run / "log.txt").read_text()
    starts = [json.loads(line) for line in (run / "settings.jsonl").read_text().splitlines()]
    changed = {"deepspeed.optimizer.params.lr": [0.005, 0.0001]}
    assert [(s["step"], s["changes"]) for s in starts] == [(0, {}), (stopped, changed)]
    rates = [line["lr"] for line in read_metrics(run / "metrics.jsonl").lines if "lr" in line]
    assert max(rates[stopped:]) <= 0.0001 < max(rates[:stopped])
    page = write_report([run], tmp_path / "report").read_text()
    assert "Settings changed" in page and "<td>lr</td>" in page
    card = model_card(load_pretrained(run), "model")
    assert f"| lr | 0.005 | 0.0001 | {stopped} |" in card
