"""Who is taken for lost, and who is missing at the start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from bertds.distributed import liveness
from bertds.distributed.heartbeat import Heartbeat
from bertds.distributed.last_words import LastWords
from bertds.distributed.liveness import CpuWatch, OwnTime, TimedStore
from bertds.distributed.progress import Sign
from bertds.distributed.rank_info import RankInfo
from bertds.distributed.rendezvous import meet
from bertds.errors import BertdsError, StoppedError
from bertds.system.processes import processor_time
from tests.support.fork_server import ForkServer
from tests.support.ranks import free_ports


def test_own_time_excludes_the_time_in_which_the_process_was_asleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    own = OwnTime(0.5)
    for moment in (0.2, 0.4, 60.4, 60.6):  # suspended for a minute
        now[0] = moment
        own.tick()
    assert own.seconds == pytest.approx(0.2 + 0.2 + 0.5 + 0.2)


def listener(rank: int) -> tuple[Heartbeat, TimedStore, Any]:
    store = dist.HashStore()
    heartbeat = Heartbeat(rank, 2, 4.0, store)
    return heartbeat, TimedStore(store, heartbeat._own), store


def sign(beat: int, count: int = 0, **changes: Any) -> Sign:
    whole = {"activity": "step", "step": 9, "waiting": False, "patient": False, "place": "here"}
    return Sign(beat=beat, count=count, **{**whole, **changes})


def test_silence_is_counted_only_while_the_listener_ran() -> None:
    heartbeat, talk, store = listener(0)
    heartbeat._talk = talk
    store.set("bertds/beat/1", sign(1).to_text())
    heartbeat._listen(talk)
    heartbeat._own.seconds = 100.0
    assert heartbeat._silence(1) == 0.0  # it did not listen in that time: nothing is proved
    store.set("bertds/beat/1", sign(2).to_text())
    heartbeat._listen(talk)
    heartbeat._own.seconds = 103.0
    heartbeat._listen(talk)
    assert heartbeat._silence(1) == 3.0
    heartbeat._own.seconds = 105.0
    heartbeat._listen(talk)
    assert heartbeat._silence(1) == 5.0


def test_a_store_that_does_not_answer_is_rank_0s_silence() -> None:
    heartbeat, talk, _ = listener(1)
    heartbeat._talk = talk
    heartbeat._listen(talk)
    heartbeat._own.seconds = 50.0
    assert heartbeat._silence(0) == 0.0
    talk.asked = 44.0
    assert heartbeat._silence(0) == 6.0


def test_all_learn_the_code_of_a_rank_that_stops_early() -> None:
    main, talk, store = listener(0)
    word = LastWords(1)
    word.say("s3://corpus does not answer", 75)
    word.say("something that followed", 1)
    word.publish(talk)
    main._listen(talk)
    assert (main.verdict, main.exit_code) == ("rank 1 exited with: s3://corpus does not answer", 75)
    main._listen(talk)  # passes it on
    other = Heartbeat(2, 3, 4.0, store)
    other._listen(TimedStore(store, other._own))
    assert (other.verdict, other.exit_code) == (main.verdict, 75)


def test_the_last_message_of_a_neighbour_that_ended_is_received() -> None:
    """Rank 2 listens to rank 0 alone; when it sees rank 1 gone, it asks."""
    _, talk, store = listener(0)
    word = LastWords(1)
    word.say("SIGTERM", 143)
    word.publish(talk)
    other = Heartbeat(2, 3, 4.0, store)
    other._listen(TimedStore(store, other._own))
    assert other.verdict == ""
    other._gone.add(1)
    other._listen(TimedStore(store, other._own))
    assert (other.verdict, other.exit_code) == ("rank 1 exited with: SIGTERM", 143)


def test_a_broken_collective_is_explained_by_the_peer_that_stopped_early() -> None:
    heartbeat, talk, _ = listener(0)
    heartbeat._threads = [threading.current_thread()]
    error = RuntimeError("Connection closed by peer")
    assert heartbeat.explain(ValueError("not about a peer")) is None
    word = LastWords(1)
    word.say("a dead store", 75)
    word.publish(talk)
    heartbeat._listen(talk)
    found = heartbeat.explain(error)
    assert isinstance(found, StoppedError) and found.exit_code == 75
    assert str(found) == "rank 1 exited with: a dead store; run the same command again to resume"


def test_a_stopped_process_does_not_run_and_a_busy_one_does() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    watch = CpuWatch()

    def ran_within(seconds: float, then: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not watch.ran_since(process.pid, then):
            watch.look(process.pid, time.monotonic())
            time.sleep(0.02)
        return watch.ran_since(process.pid, then)

    try:
        watch.look(process.pid, 0.0)
        assert ran_within(20.0, 0.0)
        os.kill(process.pid, signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        watch.look(process.pid, time.monotonic())
        assert not ran_within(0.3, time.monotonic())
        assert processor_time(process.pid) is not None
    finally:
        process.kill()
        process.wait()
    assert processor_time(process.pid) is None


@pytest.mark.parametrize(
    ("verdict", "killed"),
    [
        ("rank 1 (process 7 on here) is lost: silent for 5 s", [7]),
        ("rank 1 is lost: silent for 5 s", [7]),
        # It left in order, and only says whom it had lost.
        ("rank 1 (process 7 on here) exited with: rank 2 is lost: silent for 5 s", []),
    ],
)
def test_only_the_frozen_one_is_killed(
    verdict: str, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat, _, _ = listener(0)
    heartbeat.verdict = verdict
    seen: list[int] = []
    monkeypatch.setattr("bertds.distributed.neighbours.start_time", lambda pid: "1")
    monkeypatch.setattr(
        "bertds.distributed.neighbours.os.kill", lambda pid, number: seen.append(pid)
    )
    heartbeat._neighbours.add(1, {"pid": 7, "start": "1", "host": socket.gethostname()})
    heartbeat._end_frozen()
    assert seen == killed


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    [number] = free_ports(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    return number


def meet_in_threads(ranks: list[int], world_size: int, limit: float) -> dict[int, Any]:
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        try:
            found[rank] = meet(RankInfo(rank, rank, world_size), limit)
        except BertdsError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_processes_find_each_other(port: int) -> None:
    stores = meet_in_threads([0, 1, 2], 3, 20.0)
    stores[1].set("word", "heard")
    assert stores[0].get("word") == stores[2].get("word") == b"heard"


def test_missing_ranks_are_named_on_all_ranks_that_started(port: int) -> None:
    found = meet_in_threads([0, 3], 5, 1.0)
    for rank in (0, 3):
        assert f"rank {rank} of 5 waited 1 s at 127.0.0.1:{port}" in found[rank]
        assert "of 5 ranks are missing: 1, 2, 4" in found[rank]


def test_rank_0_is_named_if_it_is_missing_or_does_not_answer(port: int) -> None:
    assert "rank 0 is missing" in meet_in_threads([1], 2, 1.0)[1]
    with socket.create_server(("127.0.0.1", port)):  # as of a process that is stopped
        assert "does not respond" in meet_in_threads([1], 2, 1.0)[1]


@pytest.mark.slow
def test_a_rank_that_freezes_before_the_rendezvous_is_named(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    ranks = fork_server.start(
        command("run", "guard.meeting_timeout_seconds=3"),
        3,
        output=tmp_path,
        plans={1: {"die": ["run.meet", 1, signal.SIGSTOP]}},
    )
    deadline = time.monotonic() + 60
    while None in (ranks.poll()[0], ranks.poll()[2]):
        assert time.monotonic() < deadline, ranks.text(0)
        time.sleep(0.05)
    ranks.kill()
    assert ranks.wait(10) == [1, -signal.SIGKILL, 1]
    assert "of 3 ranks are missing: 1; " in ranks.text(0)
    assert "Traceback" not in ranks.text(0)


@pytest.mark.slow
def test_a_rank_that_holds_pythons_lock_is_not_lost(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """It cannot speak for three timeouts, but it uses the processor."""
    code, text = fork_server.run(
        command("run", "guard.peer_timeout_seconds=1.5", "schedule.total_steps=3"),
        2,
        output=tmp_path,
        plans={1: {"hog": 4.5}},
    )
    assert code == 0, text
