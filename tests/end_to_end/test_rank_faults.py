"""Each way in which a rank can fail or hang ends the job, and the resumed run is the unbroken one.

    BERTDS_FAULTS=all python -m pytest -m slow tests/end_to_end/test_rank_faults.py

tries each kind on both ranks; else there are those that no other test has.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bertds.system.processes import start_time
from tests.slurm.runs import assert_same_run
from tests.support.fault_injection import FAULTS
from tests.support.fork_server import ForkServer

pytestmark = pytest.mark.slow

STEPS = ["schedule.total_steps=14", "checkpoint.every_steps=3", "data.prefetch_steps=1"]
STEP = 11
"""By then the run knows how long its steps take."""
SHORT = ["guard.peer_timeout_seconds=3", "guard.progress_timeout_seconds=4"]

# What the failing rank ends with, and what the other one says.
ORDERLY = {"sigint", "sigterm"}
CODES: dict[str, set[int]] = {
    "abort": {-signal.SIGABRT},
    "segfault": {-signal.SIGSEGV},
    "sigkill": {-signal.SIGKILL},
    "sigstop": {-signal.SIGKILL},
    "lock": {-signal.SIGKILL},
    "sleep": {-signal.SIGKILL, 1},
    "gpu_sleep": {-signal.SIGKILL, 1},
    "gpu_error": {-signal.SIGABRT, 1},
    "memory": {1, 99, -signal.SIGABRT, -signal.SIGKILL},
    **{name: {75} for name in ORDERLY},
}
SAID = {
    "exception": "exited with: a planted exception",
    "async_exception": "exited with: ",
    "signal_exception": "exited with: a planted exception",
    "exit": "exited with: this process called sys.exit() before the run was finished",
    "sleep": "is lost: no progress for ",
    "lock": "is lost: silent for ",
}
USUAL = [("sleep", 0), ("lock", 1), ("memory", 1)]
GPU = [name for name in FAULTS if name.startswith("gpu")]
EVERY = [(name, rank) for name in FAULTS if name not in GPU for rank in (0, 1)]
CASES = EVERY if os.environ.get("BERTDS_FAULTS") == "all" else USUAL


@pytest.fixture(scope="module")
def unbroken(
    fork_server: ForkServer,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    line = [
        "--deepspeed_config",
        str(tiny_json),
        "--config",
        str(tiny_recipe),
        "--set",
        f"run.dir={folder / 'run'}",
        f"data.path={tiny_data}",
        *STEPS,
    ]
    assert fork_server.run(line, 2, output=folder)[0] == 0
    return folder / "run"


@pytest.mark.parametrize(("fault", "victim"), CASES)
def test_it_is_noticed_and_the_resumed_run_equals_an_uninterrupted_one(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    unbroken: Path,
    fault: str,
    victim: int,
) -> None:
    line = command("run", *STEPS, *SHORT)
    ranks = fork_server.start(line, 2, output=tmp_path, plans={victim: {"fault": [fault, STEP]}})
    codes = ranks.wait(60)
    said = ranks.text(0) + "\n----\n" + ranks.text(1)
    other = 1 - victim
    assert codes[victim] in CODES.get(fault, {1}), (codes, said)
    assert codes[other] == (75 if fault in ORDERLY else 1), (codes, said)
    if fault not in ORDERLY:
        assert f"rank {victim} (process {ranks.pids[victim]} on " in ranks.text(other), said
        assert SAID.get(fault, "") in ranks.text(other), said
    assert all(start_time(pid) == "" for pid in ranks.pids)
    code, text = fork_server.run(line, 2, output=tmp_path)
    assert code == 0 and "resuming at step" in text
    assert_same_run(tmp_path / "run", unbroken)
    print(f"{fault} on rank {victim}: exit codes {codes}")
