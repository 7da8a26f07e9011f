from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertds.distributed.rank_info import find_place
from bertds.distributed.stop_requests import StopWatch
from bertds.errors import ConfigError


def test_places_of_launchers() -> None:
    place = find_place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (place.rank, place.local_rank, place.world_size, place.is_main) == (3, 1, 8, False)
    assert find_place({}).world_size == 1
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NNODES": "2"}
    place = find_place({**slurm, "MASTER_ADDR": "node1", "MASTER_PORT": "2000"})
    assert (place.rank, place.world_size) == (2, 4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "must be integers"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "MASTER_ADDR and MASTER_PORT are not set"),
        (
            {"SLURM_PROCID": "0", "SLURM_NNODES": "2", "RANK": "0", "WORLD_SIZE": "1"},
            "each node would train alone",
        ),
        (  # srun deepspeed --num_gpus=2 --master_addr=$(hostname)
            {"SLURM_PROCID": "1", "SLURM_NNODES": "2", "RANK": "0", "WORLD_SIZE": "2",
             "LOCAL_SIZE": "2", "MASTER_ADDR": "node2"},
            "each node would train alone",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NNODES": "2", "RANK": "0", "WORLD_SIZE": "4",
             "MASTER_ADDR": "localhost"},
            "cannot meet at MASTER_ADDR=localhost",
        ),
    ],
)  # fmt: skip
def test_impossible_places_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_place(environment)


@pytest.fixture
def handlers() -> object:
    before = {number: signal.getsignal(number) for number in (2, 10, 15)}
    yield None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_wishes(tmp_path: Path, handlers: object, number: int) -> None:
    watch = StopWatch(tmp_path, None).listen()
    assert watch.reason() == ""
    os.kill(os.getpid(), number)
    assert watch.reason() == signal.Signals(number).name


def test_the_stop_file_and_the_time_limit(tmp_path: Path) -> None:
    watch = StopWatch(tmp_path, None)
    (tmp_path / "STOP").touch()
    assert "STOP exists" in watch.reason()
    assert StopWatch(tmp_path / "x", 0.0).reason() == "run.max_hours is over"


CHILD = """
import os, sys, time
from pathlib import Path
from bertds.distributed.stop_requests import StopWatch
watch = StopWatch(Path(sys.argv[1]), None).listen()
print("ready", flush=True)
while not watch.reason():
    time.sleep(0.05)
print(watch.reason(), flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "60"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "SIGINT\n"
    time.sleep(0.7)
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130


def test_a_vanished_launcher_is_noticed(tmp_path: Path) -> None:
    # A parent that starts the child and dies at once, as a killed launcher does.
    parent = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2], '0'])\n"
        "import time; time.sleep(1.5)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", parent, CHILD, str(tmp_path)], capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip
    assert answer.stdout.splitlines() == ["ready", "the launcher is gone"]
