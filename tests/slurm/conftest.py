from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import COMMANDS, SCRIPT, Lab, cannot_run
from tests.support.fork_server import ForkServer


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    missing = [command for command in COMMANDS if not shutil.which(command)]
    if os.geteuid() or missing:
        cannot_run(f"a Slurm cluster needs root and {', '.join(missing) or 'nothing else'}")
    folder = tmp_path_factory.mktemp("lab")
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=60, stdout=subprocess.DEVNULL)
    try:
        yield Lab(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], timeout=30)


@pytest.fixture
def lab(
    cluster: Lab, tmp_path: Path, tiny_data: Path, slurm_recipe: Path, slurm_json: Path
) -> Iterator[Lab]:
    """The cluster, with a site.env for this test; no job is left behind."""
    site = tmp_path / "site.env"
    site.write_text(
        # Python starts slowly where CI has one machine for four nodes.
        "BERTDS_PREFLIGHT_SECONDS=150\n"
        f"BERTDS_DATA={tiny_data}\nBERTDS_RUNS={tmp_path}\nBERTDS_MIN_FREE_GB=0.1\n"
        f"BERTDS_PHASE1={slurm_recipe}\nBERTDS_PHASE1_JSON={slurm_json}\n"
        f"BERTDS_PHASE2={slurm_recipe}\nBERTDS_PHASE2_JSON={slurm_json}\n"
    )
    cluster.variables = {"BERTDS_SITE": str(site), "SBATCH_OUTPUT": f"{tmp_path}/%x-%j.log"}
    yield cluster
    cluster.clean()


STEPS = 200
"""Of the tests' run: with 36 samples each some ten seconds, so that there is time to disturb it."""


class Gate:
    """Holds the run of a job before each disturbance; see ``gate/sitecustomize.py``.

    Args:
        lab: the cluster.
        folder: a folder that all nodes see.
    """

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.file = folder / "gate"
        self.until(0)
        lab.variables |= {
            "BERTDS_TEST_GATE": str(self.file),
            "PYTHONPATH": str(Path(__file__).parent / "gate"),
        }

    def until(self, step: int) -> None:
        """Let the run take steps up to this one, and then wait."""
        new = self.file.with_suffix(".new")
        new.write_text(str(step))
        new.replace(self.file)

    def open(self) -> None:
        """Let it run to its end."""
        self.until(10**9)


@pytest.fixture
def gate(lab: Lab, tmp_path: Path) -> Gate:
    """A gate for the jobs that this test submits; closed before the first step."""
    return Gate(lab, tmp_path)


GLOBAL_BATCH = 36


@pytest.fixture(scope="session")
def slurm_json(tiny_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "slurm.json"
    settings = json.loads(tiny_json.read_text())
    path.write_text(json.dumps({**settings, "train_batch_size": GLOBAL_BATCH}))
    return path


@pytest.fixture(scope="session")
def slurm_recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "slurm.yaml"
    text = tiny_recipe.read_text().replace("total_steps: 6", f"total_steps: {STEPS}")
    path.write_text(text + "checkpoint:\n  every_steps: 20\n")
    return path


@pytest.fixture(scope="session")
def undisturbed(
    fork_server: ForkServer,
    slurm_recipe: Path,
    slurm_json: Path,
    tiny_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The run folder of two processes on this machine, without Slurm."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [
        "--deepspeed_config",
        str(slurm_json),
        "--config",
        str(slurm_recipe),
        "--log-samples",
        "--set",
        f"run.dir={run}",
        f"data.path={tiny_data}",
    ]
    ranks = fork_server.start(command, 2, output=run.parent)
    assert ranks.wait(400) == [0, 0], ranks.text(0)
    return run
