"""Several machines without Slurm, as docs/slurm.md has it; the machines are the lab's nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import STEPS
from tests.slurm.lab import SCRIPT, Lab, cannot_run
from tests.slurm.runs import metrics

pytestmark = pytest.mark.slurm


@pytest.fixture
def training(
    repository: Path, tmp_path: Path, slurm_recipe: Path, slurm_json: Path, tiny_data: Path
) -> list[object]:
    """What both tests start on two machines with DeepSpeed's launcher."""
    settings = [f"run.dir={tmp_path}/run", f"data.path={tiny_data}"]
    settings += [f"schedule.horizon_steps={STEPS}"]
    files = ["--deepspeed_config", slurm_json, "--config", slurm_recipe]
    return [repository / "bertds/train.py", *files, "--set", *settings]


def launcher(tmp_path: Path) -> list[object]:
    """Write a hostfile of two machines; return the command up to the launcher's own options."""
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    program = [sys.executable, Path(sys.executable).with_name("deepspeed")]
    return [*program, "--hostfile", tmp_path / "hostfile", "--master_addr", "node1"]


def test_deepspeed_with_a_hostfile_on_two_machines(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path, training: list[object]
) -> None:
    run = tmp_path / "run"

    def start(rank: int) -> subprocess.Popen[str]:
        command = [
            *(SCRIPT, "on", lab.folder, f"node{rank + 1}"),
            *("env", "DS_ACCELERATOR=cpu", f"PYTHONPATH={repository}"),
            *launcher(tmp_path),
            *("--no_ssh", "--node_rank", rank, "--master_port", 29500),
            *training,
            "schedule.total_steps=30",
        ]
        return subprocess.Popen(
            list(map(str, command)),
            env=lab.environment(),
            stdin=subprocess.DEVNULL,
            text=True,
            stdout=open(tmp_path / f"node{rank}.txt", "w"),
            stderr=subprocess.STDOUT,
        )

    machines = [start(0), start(1)]
    try:
        codes = [machine.wait(500) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    output = "".join((tmp_path / f"node{rank}.txt").read_text() for rank in (0, 1))
    assert codes == [0, 0], output
    assert train_lines(run) == train_lines(undisturbed)[:30]


SSH = """#!/bin/bash
# ssh [options] HOST COMMAND: as a login on that host, which brings none of this environment
while [[ $1 == -* ]]; do
  case $1 in -l | -o | -p) shift 2 ;; *) shift ;; esac
done
host=$1
shift
exec @cluster@ on @lab@ "$host" env -i HOME=/root PATH=/usr/bin:/bin OMP_NUM_THREADS=1 bash -c "$*"
"""


def test_deepspeed_starts_the_other_machines_itself(
    lab: Lab, tmp_path: Path, undisturbed: Path, training: list[object]
) -> None:
    """The launcher and pdsh are real; `ssh` enters the node's namespaces instead of asking sshd."""
    if not shutil.which("pdsh"):
        cannot_run("deepspeed's default launcher needs pdsh")
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH.replace("@cluster@", str(SCRIPT)).replace("@lab@", str(lab.folder)))
    ssh.chmod(0o755)
    run = tmp_path / "run"
    command = [*launcher(tmp_path), *training, "schedule.total_steps=10"]
    environment = {
        **lab.environment(),
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{ssh.parent}:{os.environ['PATH']}",
    }
    answer = subprocess.run(
        list(map(str, command)),
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
    )
    assert answer.returncode == 0 and (run / "DONE").is_file(), answer.stdout
    assert train_lines(run) == train_lines(undisturbed)[:10]


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "split" not in line]
