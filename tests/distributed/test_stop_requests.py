from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertds.distributed.rank_info import find_rank_info, has_launcher
from bertds.distributed.stop_requests import StopRequests
from bertds.errors import ConfigError


def test_ranks_from_the_variables_of_launchers() -> None:
    place = find_rank_info({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (place.rank, place.local_rank, place.world_size, place.is_main) == (3, 1, 8, False)
    assert find_rank_info({}).world_size == 1
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NNODES": "2"}
    place = find_rank_info({**slurm, **MEETING})
    assert (place.rank, place.world_size) == (2, 4)


MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "2000"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # as mpirun of Open MPI 4 and 5 sets them
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
CRAY = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PALS_RANKID": "3"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "3",
    "MV2_COMM_WORLD_SIZE": "4",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
}
JSRUN = {
    "JSM_NAMESPACE_RANK": "3",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "PMIX_RANK": "3",
}
FLUX = {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1"}
# A shell inside `salloc`: each process that mpirun starts from it on this machine inherits them.
SHELL_IN_SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "PMIX_RANK": "0",
}


@pytest.mark.parametrize(
    "variables", [OPEN_MPI, {**SHELL_IN_SLURM, **OPEN_MPI}, HYDRA, CRAY, MVAPICH, JSRUN, FLUX]
)
def test_ranks_from_the_variables_of_mpi(variables: dict[str, str]) -> None:
    place = find_rank_info({**variables, **MEETING})
    assert (place.rank, place.local_rank, place.world_size) == (3, 1, 4)
    assert has_launcher(variables)
    with pytest.raises(ConfigError, match="4 processes, but MASTER_ADDR and MASTER_PORT are not"):
        find_rank_info(variables)
    # mpirun -n 4 deepspeed --num_gpus 1 ...
    with pytest.raises(ConfigError, match="WORLD_SIZE=1, so each would train separately"):
        find_rank_info({**variables, **MEETING, "RANK": "0", "WORLD_SIZE": "1"})
    # mpirun starts one torchrun for each machine
    assert find_rank_info({**variables, "RANK": "9", "WORLD_SIZE": "32"}).rank == 9


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "PMIX_RANK": "0"},  # srun --pty bash
        {"RANK": "0", "WORLD_SIZE": "1"},  # what an earlier run in this process has set
    ],
)
def test_a_shells_child_has_no_launcher_to_watch(variables: dict[str, str]) -> None:
    assert find_rank_info(variables).world_size == 1
    assert not has_launcher(variables)


@pytest.mark.parametrize("name", ["BERTDS_LAUNCHER", "CROSS_RANK", "TORCHELASTIC_RUN_ID"])
def test_a_launchers_child_watches_it(name: str) -> None:
    assert has_launcher({name: "0"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 must be less than WORLD_SIZE=4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "must be integers"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"PMIX_RANK": "2"}, "PMIX_RANK=2 is set, but the number of processes is unknown"),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "4"},
            "the number of this process on its machine is unknown",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NNODES": "2", "RANK": "0", "WORLD_SIZE": "1"},
            "each node would train separately",
        ),
        (  # srun deepspeed --num_gpus=2 --master_addr=$(hostname)
            {
                "SLURM_PROCID": "1",
                "SLURM_NNODES": "2",
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_SIZE": "2",
                "MASTER_ADDR": "node2",
            },
            "each node would train separately",
        ),
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NNODES": "2",
                "RANK": "0",
                "WORLD_SIZE": "4",
                "MASTER_ADDR": "localhost",
            },
            "cannot meet at MASTER_ADDR=localhost",
        ),
    ],
)
def test_impossible_ranks_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_rank_info(environment)


@pytest.fixture
def handlers() -> object:
    before = {number: signal.getsignal(number) for number in (1, 2, 10, 15)}
    yield None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_stop_requests(tmp_path: Path, handlers: object, number: int) -> None:
    watch = StopRequests(tmp_path, None).listen()
    assert watch.reason() == ""
    os.kill(os.getpid(), number)
    assert watch.reason() == signal.Signals(number).name


def test_the_stop_file_and_the_time_limit(tmp_path: Path) -> None:
    watch = StopRequests(tmp_path, None)
    (tmp_path / "STOP").touch()
    assert "STOP exists" in watch.reason()
    assert StopRequests(tmp_path / "x", 0.0).reason() == "run.max_hours was reached"


CHILD = """
import os, sys, time
from pathlib import Path
from bertds.distributed.stop_requests import StopRequests
watch = StopRequests(Path(sys.argv[1]), None).listen()
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


@pytest.mark.parametrize(
    ("launcher", "reason"),
    # What a shell started continues without it, as under nohup, setsid, disown, tmux and cron.
    [({"BERTDS_LAUNCHER": "1"}, "the launcher is gone"), ({}, "STOP exists")],
)
def test_only_a_launcher_that_disappears_ends_the_run(
    tmp_path: Path, launcher: dict[str, str], reason: str
) -> None:
    log = tmp_path / "said"
    child = f"{sys.executable} -c '{CHILD}' {tmp_path} 0 > {log}"
    script = f"{child} & until [ -s {log} ]; do sleep 0.1; done"
    environment = {**os.environ, **launcher}
    subprocess.run(["sh", "-c", script], env=environment, timeout=30, check=True)
    time.sleep(1.5)  # the file system is asked once per second
    assert log.read_text() == "ready\n" or launcher
    (tmp_path / "STOP").touch()
    deadline = time.monotonic() + 30
    while len(log.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reason in log.read_text().splitlines()[1]


def test_a_closed_terminal_is_a_stop_request_unless_it_is_ignored(
    tmp_path: Path, handlers: object
) -> None:
    watch = StopRequests(tmp_path, None).listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert watch.reason() == "SIGHUP"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    watch = StopRequests(tmp_path, None).listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert watch.reason() == ""
