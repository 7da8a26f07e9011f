"""Every way to stop ends all ranks after the same step, saved, with exit code 75."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertds.distributed.stop_requests import StopRequests, seconds_left_of_job
from bertds.monitor.run_files import read_metrics
from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_state, losses, saved_steps, train_lines

ENDLESS = "schedule.total_steps=100000"


def wait_for_a_step(ranks: Any, run: Path) -> None:
    deadline = time.monotonic() + 120
    while not read_metrics(run / "metrics.jsonl").lines:
        assert time.monotonic() < deadline and set(ranks.poll()) == {None}, ranks.text(0)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "victim"),
    [
        (signal.SIGTERM, 1),
        ("STOP", 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.slow),
        pytest.param("both", 0, marks=pytest.mark.slow),
    ],
)
def test_a_stop_ends_all_ranks_after_the_same_step(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    how: Any,
    victim: int,
) -> None:
    ranks = fork_server.start(
        command("run", ENDLESS, "checkpoint.background=true"), 2, output=tmp_path
    )
    wait_for_a_step(ranks, tmp_path / "run")
    if how == "STOP":
        (tmp_path / "run" / "STOP").touch()
    elif how == "both":  # as Slurm and launchers do: more than one, more than once
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            for rank in (0, 1):
                ranks.signal(rank, number)
    else:
        ranks.signal(victim, how)
    assert ranks.wait(60) == [75, 75]
    assert not (tmp_path / "run" / "DONE").exists()
    last = train_lines(tmp_path / "run")[-1]["step"]
    assert saved_steps(tmp_path / "run")[0] == last
    text = ranks.text(0)
    assert f"stopped at step {last} (" in text and "everything is saved" in text
    if how == "STOP":
        assert "STOP exists" in text


def test_a_stop_before_training_is_one_line_and_costs_nothing(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    for point, number in (
        ("run.start", signal.SIGTERM),  # nothing is imported
        ("run.open", signal.SIGINT),  # there is no run folder yet
        ("engine.wrap", signal.SIGHUP),
    ):
        code, text = fork_server.run(
            command("run"), output=tmp_path, plans={0: {"die": [point, 1, number]}}
        )
        assert code == 128 + number, text
        assert text.splitlines()[-1] == (
            f"bertds: stopped by {number.name} before training began; run the same command again"
        )
        assert "Traceback" not in text
        # Another thread ends the process: at run.open the folder may come to be just before.
        assert point == "run.open" or (tmp_path / "run").exists() == point.startswith("engine")
        assert saved_steps(tmp_path / "run") == [] and not (tmp_path / "run" / "DONE").exists()
    code, text = fork_server.run(command("run"), output=tmp_path)
    assert code == 0, text
    assert [line["step"] for line in train_lines(tmp_path / "run")] == list(range(1, 7))


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_is_stopped_before_training_stops_the_other(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, first: int
) -> None:
    """The other waits for it in torch's own code."""
    words = command("run", "guard.peer_timeout_seconds=10")
    plans = {first: {"die": ["engine.group", 1, signal.SIGTERM]}}
    ranks = fork_server.start(words, 2, output=tmp_path, plans=plans)
    assert ranks.wait() == [143, 143], ranks.text(0) + ranks.text(1)
    said = "exited with: stopped by SIGTERM before training began"
    assert f"rank {first} (process" in ranks.text(1 - first) and said in ranks.text(1 - first)
    assert "Traceback" not in ranks.text(0) + ranks.text(1)


def test_a_job_that_is_nearly_over_stops_in_time(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    now = time.time()
    environment = {
        "SLURM_JOB_START_TIME": str(int(now - 3600)),
        "SLURM_JOB_END_TIME": str(int(now + 61)),
    }
    code, text = fork_server.run(
        command("run", ENDLESS, "run.stop_margin_minutes=1"),
        2,
        output=tmp_path,
        environment=environment,
    )
    assert code == 75 and "the time limit of the Slurm job is close" in text


def test_the_time_left_of_a_job() -> None:
    assert seconds_left_of_job(3.0, {}) is None
    assert seconds_left_of_job(3.0, {"SLURM_JOB_END_TIME": "soon"}) is None
    now = time.time()
    job = {"SLURM_JOB_START_TIME": str(now - 3000), "SLURM_JOB_END_TIME": str(now + 600)}
    assert seconds_left_of_job(3.0, job) == pytest.approx(420, abs=1)
    short = {"SLURM_JOB_START_TIME": str(now - 10), "SLURM_JOB_END_TIME": str(now + 50)}
    assert seconds_left_of_job(3.0, short) == pytest.approx(44, abs=1)  # 10% of its minute
    assert (
        StopRequests(Path("/nowhere"), None, -1.0).reason()
        == "the time limit of the Slurm job is close"
    )


def test_max_hours_stops_after_its_time(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    began = time.monotonic()
    code, text = fork_server.run(command("run", ENDLESS, "run.max_hours=0.0003"), output=tmp_path)
    assert code == 75 and "run.max_hours was reached" in text
    assert time.monotonic() - began > 0.0003 * 3600
    assert saved_steps(tmp_path / "run")[0] > 1


@pytest.mark.slow
def test_the_clock_schedule_survives_restarts(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Every step takes 36 seconds of a false clock; the budget is 198 of them.

    The ranks agree on the time of the step before, so the seventh step is the last.
    """
    clock = [
        "schedule.warmup_steps=null",
        "schedule.warmup_ratio=0.4",
        "schedule.clock_hours=0.055",
        "schedule.total_steps=1000",
    ]
    plans = {0: {"clock": 36.0}}
    assert fork_server.run(command("whole", *clock), output=tmp_path, plans=plans)[0] == 0
    rates = [line["lr"] for line in train_lines(tmp_path / "whole")]
    warmup = 0.4 * 0.055
    hours = [0.0, *(0.01 * step for step in range(6))]
    wanted = [5e-3 * (h / warmup if h < warmup else 1 - h / 0.055) for h in hours]
    assert rates == pytest.approx(wanted)
    codes = []
    while not codes or (codes[-1] == 75 and len(codes) < 9):
        once = command("broken", *clock, "run.max_hours=0")
        codes.append(fork_server.run(once, output=tmp_path, plans=plans)[0])
    assert codes == [75] * 6 + [0]
    assert [line["lr"] for line in train_lines(tmp_path / "broken")] == rates
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_state(tmp_path / "broken", tmp_path / "whole")


def test_signals_during_shutdown_change_nothing(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """All is saved by then; a second Ctrl-C would otherwise leave at once, with another code."""
    code, text = fork_server.run(
        command("run"), output=tmp_path, plans={0: {"stop": 3, "insist": 3}}
    )
    assert code == 75, text
    code, text = fork_server.run(command("run"), output=tmp_path, plans={0: {"insist": 3}})
    assert code == 0, text
    assert (tmp_path / "run" / "DONE").exists()
