"""Several machines without Slurm, as docs/slurm.md has it; the machines are the lab's nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import STEPS
from tests.slurm.lab import SCRIPT, Lab
from tests.slurm.runs import metrics

pytestmark = pytest.mark.slurm


def test_deepspeed_with_a_hostfile_on_two_machines(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path, slurm_recipe: Path,
    slurm_json: Path, tiny_data: Path,
) -> None:  # fmt: skip
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    run = tmp_path / "run"

    def start(rank: int) -> subprocess.Popen[str]:
        command = [
            SCRIPT, "on", lab.folder, f"node{rank + 1}", "env", "DS_ACCELERATOR=cpu",
            f"PYTHONPATH={repository}", sys.executable,
            Path(sys.executable).with_name("deepspeed"), "--hostfile", tmp_path / "hostfile",
            "--no_ssh", "--node_rank", rank, "--master_addr", "node1", "--master_port", 29500,
            repository / "bertds/train.py", "--deepspeed_config", slurm_json, "--config",
            slurm_recipe, "--set", f"run.dir={run}", f"data.path={tiny_data}",
            "schedule.total_steps=30", f"schedule.horizon_steps={STEPS}",
        ]  # fmt: skip
        return subprocess.Popen(
            list(map(str, command)), env=lab.environment(), stdin=subprocess.DEVNULL, text=True,
            stdout=open(tmp_path / f"node{rank}.txt", "w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    machines = [start(0), start(1)]
    try:
        codes = [machine.wait(240) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    output = "".join((tmp_path / f"node{rank}.txt").read_text() for rank in (0, 1))
    assert codes == [0, 0], output
    assert train_lines(run) == train_lines(undisturbed)[:30]


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "split" not in line]
