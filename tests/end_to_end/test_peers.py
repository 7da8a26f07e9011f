"""A rank that is killed, frozen or broken ends the job, and the others say which it was."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bertds.monitor.run_files import read_metrics
from bertds.system.processes import start_time
from tests.support.fork_server import ForkServer

ENDLESS = ["schedule.total_steps=100000", "checkpoint.every_steps=2", "data.prefetch_steps=1"]


def wait_for_steps(ranks: Any, run: Path, steps: int = 3) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(run / "metrics.jsonl").lines) < steps:
        assert time.monotonic() < deadline and set(ranks.poll()) == {None}, ranks.text(0)
        time.sleep(0.05)


def nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_ends_the_job_and_is_named(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    victim: int,
    number: int,
) -> None:
    world_size = 3
    ranks = fork_server.start(
        command("run", *ENDLESS, "guard.peer_timeout_seconds=3"), world_size, output=tmp_path
    )
    wait_for_steps(ranks, tmp_path / "run")
    port = int(psutil.Process(ranks.pids[0]).environ()["MASTER_PORT"])
    began = time.monotonic()
    ranks.signal(victim, number)
    codes = ranks.wait(30)
    assert time.monotonic() - began < 20
    # The frozen one is killed by a survivor: stopped, it would keep its port and its GPU.
    assert codes[victim] == -signal.SIGKILL
    survivors = [rank for rank in range(world_size) if rank != victim]
    said = "\n----\n".join(ranks.text(rank) for rank in survivors)
    assert [codes[rank] for rank in survivors] == [1] * len(survivors), said
    for rank in survivors:
        assert f"rank {victim} (process {ranks.pids[victim]} on " in ranks.text(rank), ranks.text(
            rank
        )
        assert "Traceback" not in ranks.text(rank)
    assert all(start_time(pid) == "" for pid in ranks.pids)
    assert nobody_listens(port)
    # And the run continues from its last checkpoint.
    code, text = fork_server.run(
        command("run", *ENDLESS, "run.max_hours=0"), world_size, output=tmp_path
    )
    assert code == 75 and "resuming at step" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_lost_before_the_first_step_is_named(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, number: int
) -> None:
    ranks = fork_server.start(
        command("run", "guard.peer_timeout_seconds=3"),
        2,
        output=tmp_path,
        plans={1: {"die": ["engine.wrap", 1, number]}},
    )
    assert ranks.wait(30) == [1, -signal.SIGKILL]
    assert f"rank 1 (process {ranks.pids[1]} on " in ranks.text(0)


@pytest.mark.slow
def test_a_rank_with_an_error_of_its_own_is_quoted_by_the_others(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    ranks = fork_server.start(
        command("run", *ENDLESS, "guard.peer_timeout_seconds=4"),
        2,
        output=tmp_path,
        plans={1: {"error": 5}},
    )
    assert ranks.wait(40) == [1, 2]
    assert "rank 1" in ranks.text(0) and "exited with: a planted error" in ranks.text(0)
    assert "bertds: rank 1: error: a planted error" in ranks.text(1)


@pytest.mark.slow
def test_long_silence_of_the_training_is_not_death(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The heartbeat continues while a rank compiles, saves or waits for a slow disk."""
    extra = ["guard.peer_timeout_seconds=1.5", "schedule.total_steps=2"]
    code, text = fork_server.run(
        command("run", *extra), 2, output=tmp_path, plans={1: {"slow": 4.0}}
    )
    assert code == 0, text


@pytest.mark.slow
def test_a_job_that_was_suspended_as_a_whole_continues(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    extra = ["guard.peer_timeout_seconds=1.5", "schedule.total_steps=8"]
    ranks = fork_server.start(command("run", *extra), 2, output=tmp_path, plans={0: {"slow": 0.4}})
    wait_for_steps(ranks, tmp_path / "run", 2)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in (0, 1):
            ranks.signal(rank, number)
        if number == signal.SIGSTOP:
            time.sleep(4.0)
    assert ranks.wait(60) == [0, 0], ranks.text(1)


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_orphans(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:

    launcher = ForkServer()
    ranks = launcher.start(command("run", *ENDLESS), 2, output=tmp_path)
    wait_for_steps(ranks, tmp_path / "run")
    os.kill(launcher._process.pid, signal.SIGKILL)
    launcher._process.wait()
    deadline = time.monotonic() + 60
    while any(start_time(pid) for pid in ranks.pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "the launcher is gone" in ranks.text(0) and "everything is saved" in ranks.text(0)
