"""Ranks on one machine: how they start, stop, are lost and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertds.commands.runs.status import in_lines
from bertds.engine.ds_config import load_deepspeed_json
from bertds.errors import ConfigError
from bertds.monitor.run_files import read_metrics, read_object, starts_of
from bertds.monitor.status import read_status
from bertds.report.write import write_report
from bertds.system.processes import start_time
from bertds.train import main
from bertds.training import launch as module
from bertds.training.launch import Launcher, launch
from tests.slurm.runs import assert_same_run
from tests.support.fork_server import ForkServer
from tests.support.ranks import REPOSITORY


def live(*scripts: str, send: tuple[int, ...] = ()) -> tuple[int, Any]:
    """Run one shell script per rank, and send this process signals meanwhile."""
    for count, number in enumerate(send, start=1):
        threading.Timer(0.4 * count, os.kill, (os.getpid(), number)).start()
    environments = [{**os.environ, "SCRIPT": script} for script in scripts]
    return Launcher().live(["sh", "-c", 'eval "$SCRIPT"'], environments, 0.5)


LISTENS = "trap 'exit 75' TERM; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_one_stop_request_reaches_every_rank(number: int) -> None:
    before = signal.getsignal(number)
    assert live(LISTENS, LISTENS, send=(number,)) == (75, None)
    assert signal.getsignal(number) == before


def test_a_run_that_ended_although_it_was_asked_to_stop_is_not_followed_by_the_next() -> None:
    ends = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    assert live(ends, ends, send=(signal.SIGTERM,)) == (75, None)


def test_ranks_without_signal_handlers_end_at_once() -> None:
    assert live("exec sleep 60", "exec sleep 60", send=(signal.SIGINT,)) == (75, None)


def test_ranks_that_an_early_stop_ended_are_no_loss() -> None:
    early = "trap 'exit 143' TERM; while :; do sleep 0.05; done"
    assert live(early, early, send=(signal.SIGTERM,)) == (75, None)


def test_a_second_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    stubborn = f"echo $$ >> {tmp_path}/pids; trap '' TERM INT; while :; do sleep 0.05; done"
    assert live(stubborn, stubborn, send=(signal.SIGINT, signal.SIGINT)) == (130, None)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2 and all(start_time(int(pid)) == "" for pid in pids)


def test_under_nohup_a_closed_terminal_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert live("sleep 0.8", "sleep 0.8", send=(signal.SIGHUP,)) == (0, None)


@pytest.mark.parametrize(
    ("scripts", "code", "lost"),
    [
        (("exit 0", "exit 0"), 0, None),
        (("exit 75", "exit 75"), 75, None),
        (("exit 2", "sleep 60"), 2, "rank 0 exited with code 2"),
        (("sleep 0.5; exit 1", "exit 7"), 1, "rank 1 exited with code 7"),
        (("kill -9 $$", "sleep 60"), 1, "rank 0 was terminated by SIGKILL"),
    ],
)
def test_the_exit_code_is_that_of_the_run(
    scripts: tuple[str, ...], code: int, lost: str | None
) -> None:
    found, loss = live(*scripts)
    assert found == code and (str(loss) if loss else None) == lost


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The environments of each life; each ends as the test says."""
    seen: list[list[dict[str, str]]] = []
    monkeypatch.setattr(
        Launcher, "live", lambda self, line, given, grace: (seen.append(given), next(OUTCOMES))[1]
    )
    for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return seen


OUTCOMES: Any = iter(())


def ends(*outcomes: tuple[int, module.Loss | None]) -> None:
    global OUTCOMES
    OUTCOMES = iter(outcomes)


def test_a_rank_that_is_lost_twice_without_a_checkpoint_between_is_left_out(
    lives: list[list[dict[str, str]]],
    tiny_json: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = (1, module.Loss(1, -signal.SIGKILL))
    ends(first, first, (0, None))
    assert launch([], load_deepspeed_json(tiny_json), tmp_path, 3, 5, "bertds train ...") == 0
    assert [len(life) for life in lives] == [3, 3, 2]  # 12 rows divide by both
    assert [life[0].get("BERTDS_LOST") for life in lives] == [
        None,
        "rank 1 was terminated by SIGKILL",
        "rank 1 was terminated by SIGKILL",
    ]
    assert [one["RANK"] for one in lives[2]] == ["0", "1"]
    assert lives[2][0]["CUDA_VISIBLE_DEVICES"] == "0,2" and lives[2][0]["WORLD_SIZE"] == "2"
    said = capsys.readouterr().err
    assert "rank 1 was terminated by SIGKILL (out of memory?)" in said
    assert "restart 2 of 5: continuing from the beginning on 2 processes" in said


def test_a_rank_is_started_again_where_the_batch_does_not_divide_or_the_run_got_on(
    lives: list[list[dict[str, str]]], tiny_json: Path, tmp_path: Path
) -> None:
    lost = (1, module.Loss(0, 1))
    ends(lost, lost, lost)
    assert launch([], load_deepspeed_json(tiny_json), tmp_path, 6, 2) == 1
    assert [len(life) for life in lives] == [6, 6, 6]  # 12 rows, but not by 5


def test_bad_input_and_a_stop_request_are_not_retried(
    lives: list[list[dict[str, str]]], tiny_json: Path, tmp_path: Path
) -> None:
    settings = load_deepspeed_json(tiny_json)
    for code, loss in ((2, module.Loss(0, 2)), (75, None), (130, None)):
        ends((code, loss))
        assert launch([], settings, tmp_path, 2, 3) == code
    assert len(lives) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "5"], "train_batch_size=12 is not a multiple"),
        (["--restarts", "2"], "--processes=0 --restarts=2: --processes must be at least 1"),
        (["--processes", "-1"], "--processes=-1"),
    ],
)
def test_a_run_that_cannot_start_is_refused_before_any_rank_starts(
    command: Callable[..., list[str]], tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*command("run"), *arguments])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "0", "WORLD_SIZE": "2"}, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}],
)
def test_a_launcher_inside_a_launcher_is_refused(
    command: Callable[..., list[str]], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="omit --processes"):
        main([*command("run"), "--processes", "2"])


def report_page(run: Path, folder: Path) -> str:
    write_report([run], folder)
    return (folder / "index.html").read_text()


def children(pid: int) -> dict[str, int]:
    """The ranks that a launcher has started, by number."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            text = Path(f"/proc/{child}/environ").read_text()
        except OSError:
            continue
        found |= {v[5:]: int(child) for v in text.split("\0") if v.startswith("RANK=")}
    return found


@pytest.mark.slow
def test_after_a_lost_rank_the_run_continues_to_the_same_result(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    steps = ["schedule.total_steps=60", "checkpoint.every_steps=5"]
    assert fork_server.run(command("unbroken", *steps), 2, output=tmp_path)[0] == 0
    line = [sys.executable, "-m", "bertds", "train", *command("run", *steps)]
    with open(tmp_path / "said", "w") as said:
        launcher = subprocess.Popen(
            [*line, "--processes", "2", "--restarts", "1"], cwd=REPOSITORY, stdout=said, stderr=said
        )
        while len(read_metrics(tmp_path / "run/metrics.jsonl").lines) < 12:
            assert launcher.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.01)
        os.kill(children(launcher.pid)["1"], signal.SIGKILL)
        code = launcher.wait(120)
    text = (tmp_path / "said").read_text()
    assert code == 0, text
    assert "bertds: error: rank 1 was terminated by SIGKILL" in text
    assert "restart 1 of 1: continuing from step_000000" in text
    assert "Traceback" not in text and "[INFO]" not in text
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    last = starts_of(read_object(tmp_path / "run/environment.json", []))[-1]
    assert last["lost"]["what"] == "rank 1 was terminated by SIGKILL"
    assert 0 < last["lost"]["seconds"] < 120
    said = " ".join(in_lines(read_status(tmp_path / "run")).split())
    assert " lost, most recently because rank 1 was" in said
    assert "rank 1 was terminated by SIGKILL" in report_page(tmp_path / "run", tmp_path / "report")
    assert last["command"].startswith("bertds train --deepspeed ")
