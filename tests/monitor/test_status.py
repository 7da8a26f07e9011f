from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from bertds.cli import main as command
from bertds.commands.runs.status import in_lines
from bertds.monitor.health import findings
from bertds.monitor.status import read_status
from bertds.system.folder_lock import FolderLock
from tests.support.made_runs import make_run, train_line


def every_file(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in folder.rglob("*")
    }


def test_a_running_run_is_read_and_not_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [train_line(s) for s in range(10, 301, 10)], done=False)
    lock = FolderLock(run, "a training run").acquire()
    before = every_file(run)
    try:
        status = read_status(run)
    finally:
        after = every_file(run)
        lock.release()
    assert after == before
    assert (status.state, status.step, status.total_steps) == ("training", 300, 1000)
    assert status.seconds_left == pytest.approx(700 * 0.72)
    assert str(os.getpid()) in status.owner
    text = in_lines(status)
    assert "step 300 of 1,000, 30.0%, 8 min left" in text and "0.70 GiB" in text


def test_states(tmp_path: Path) -> None:
    lines = [train_line(10), train_line(20)]
    assert read_status(make_run(tmp_path / "done", lines)).state == "done"
    assert read_status(make_run(tmp_path / "stopped", lines, done=False)).state == "stopped"
    new = make_run(tmp_path / "new", [], done=False)
    assert read_status(new).state == "stopped"  # it was started once, says environment.json
    (new / "environment.json").unlink()
    assert read_status(new).state == "not started"
    silent = make_run(tmp_path / "silent", lines, done=False)
    with open(silent / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')  # being written just now
    lock = FolderLock(silent, "a training run").acquire()
    os.utime(silent / "metrics.jsonl", (1.0, 1.0))
    try:
        status = read_status(silent)
    finally:
        lock.release()
    assert status.state == "silent" and status.step == 20
    dead = make_run(tmp_path / "dead", lines, done=False)
    (dead / ".lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "start": 5, "purpose": ""})
    )
    assert read_status(dead).state == "killed"


def test_a_run_killed_before_its_first_step_is_not_shown_as_never_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"host": socket.gethostname(), "pid": 2**22 + 1, "start": 5, "purpose": ""}
    for name, recorded in (("late", True), ("early", False)):
        run = make_run(tmp_path / name, [], done=False)
        if not recorded:  # while the engine was built: nothing is recorded yet
            for file in ("config.yaml", "deepspeed.json", "environment.json", "metrics.jsonl"):
                (run / file).unlink()
            (run / "log.txt").write_text("starting\n")
        (run / ".lock").write_text(json.dumps(gone))
        assert read_status(run).state == "killed"
    assert command(["status", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "late: killed before its first step" in text and "early: killed before" in text
    assert f"! process {2**22 + 1} on {socket.gethostname()} ended without a message" in text
    assert "not started" not in text and "cannot be read" not in text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "work/phase1", [train_line(s) for s in (10, 1000)])
    make_run(tmp_path / "work/phase2", [train_line(s) for s in (10, 20)], done=False)
    assert command(["status", str(tmp_path / "work")]) == 0
    text = capsys.readouterr().out
    assert "phase1: done" in text and "phase2: stopped" in text and "all phases:" in text
    assert command(["status", str(tmp_path / "work"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [v["step"] for v in values] == [1000, 20]
    assert command(["status", str(tmp_path)]) == 2


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [found.name for found in findings(lines)]


def test_a_healthy_run_has_no_findings() -> None:
    assert names([train_line(s) for s in range(10, 2001, 10)]) == []
    assert names([]) == []
    assert names([{"step": 5, "split": "validation", "mlm_loss": 1.0}]) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flat", {"mlm_loss": 7.1}),
        ("chance", {"nsp_accuracy": 0.501}),
        ("loader", {"stall_seconds": 3.0}),
        ("loss", {"loss": None, "mlm_loss": None, "nsp_accuracy": None}),
    ],
)
def test_problems_are_named(name: str, changes: dict[str, Any]) -> None:
    found = findings([train_line(s, **changes) for s in range(10, 1501, 10)])
    assert [f.name for f in found] == [name]
    assert "Suggestion: " in str(found[0])


def test_overflow_storm_and_gradient() -> None:
    storm = [train_line(s, skipped_steps=s // 3) for s in range(10, 301, 10)]
    assert names(storm) == ["overflow"]
    jump = [train_line(s, grad_norm=40.0 if s == 300 else 1.0) for s in range(10, 301, 10)]
    assert names(jump) == ["gradient"]


def test_flatness_is_not_claimed_at_the_end_of_the_decay() -> None:
    lines = [
        train_line(s, mlm_loss=7.1, lr=1e-3 if s < 1400 else 1e-5) for s in range(10, 1501, 10)
    ]
    assert names(lines) == []
    early = [train_line(s, nsp_accuracy=0.5) for s in range(10, 501, 10)]
    assert names(early) == []  # next-sentence prediction is given a thousand steps


def held_out(step: int, **changes: Any) -> dict[str, Any]:
    line = {
        "step": step,
        "split": "validation",
        "mlm_loss": 7.02,
        "mlm_accuracy": 0.1,
        "unigram_entropy": 7.0,
        "nsp_accuracy": 0.53,
        "nsp_majority": 0.52,
    }
    return {**line, **changes}


def test_a_model_of_word_frequencies_is_called_one() -> None:
    train = [train_line(s) for s in range(10, 901, 10)]
    stuck = [held_out(100, mlm_loss=9.0), held_out(300), held_out(600), held_out(900)]
    (found,) = findings([*train, *stuck])
    assert found.name == "frequencies"
    assert "since step 100: held-out masked-LM loss 7.02, word frequencies alone 7.00" in found.text
    # Too early to say; once below and then back; clearly below; of data whose text is not known.
    assert names([*train, *stuck[:2]]) == []
    assert names([*train, held_out(50, mlm_loss=6.5), *stuck[2:]]) == []
    assert names([*train, *stuck, held_out(950, mlm_loss=6.9)]) == []
    unknown = [{k: v for k, v in line.items() if k != "unigram_entropy"} for line in stuck]
    assert names([*train, *unknown]) == []


def test_the_plateau_is_reported_once() -> None:
    train = [train_line(s, mlm_loss=7.02) for s in range(10, 901, 10)]
    assert names(train) == ["flat"]
    assert names([*train, *(held_out(s) for s in (300, 600, 900))]) == ["frequencies"]


def test_next_sentence_guesses_are_measured_by_the_larger_label() -> None:
    train = [train_line(s, nsp_accuracy=0.6) for s in range(10, 1501, 10)]
    lines = [
        held_out(s, mlm_loss=4.0, nsp_accuracy=0.6, nsp_majority=0.59) for s in (1100, 1300, 1500)
    ]
    (found,) = findings([*train, *lines])
    assert (
        found.name == "chance"
        and "always predicting the more frequent label gives 59.0%" in found.text
    )
    assert names([*train, *({**line, "nsp_accuracy": 0.7} for line in lines)]) == []


def test_no_number_without_its_baseline() -> None:
    from bertds.monitor.progress import describe

    text = describe(held_out(900))
    assert "mlm loss 7.0200 (baseline from word frequencies alone: 7.0000)" in text
    assert "nsp accuracy 53.0% (majority label 52.0%)" in text


def test_a_run_by_the_clock(tmp_path: Path) -> None:
    """Lines of 7.2 s and ten steps: 0.1 hours are 500 steps."""
    lines = [train_line(s) for s in range(10, 101, 10)]
    run = make_run(tmp_path / "run", lines, total=10**6, done=False)
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        recipe.replace("total_steps:", "clock_hours: 0.1, total_steps:")
    )
    status = read_status(run)
    assert status.total_steps == 500 and status.seconds_left == pytest.approx(288)
    (run / "DONE").write_text("{}")
    assert read_status(run).total_steps == 100


def test_it_fits_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = [train_line(s, mfu=0.4, trust_ratio={"decay": [0.1, 0.2, 0.3]}) for s in (10, 20)]
    held_out = {
        "step": 20,
        "split": "validation",
        "mlm_loss": 3.0,
        "mlm_accuracy": 0.4,
        "unigram_entropy": 7.0,
        "nsp_accuracy": 0.53,
        "nsp_majority": 0.52,
    }
    shown = in_lines(read_status(make_run(tmp_path / "run", [*lines, held_out]))).splitlines()
    # A path is not cut in two, since it could not be copied then.
    assert all(len(line) <= 80 for line in shown[1:]) and len(shown) > 4
    assert "grad norm 1" in " ".join(shown)
