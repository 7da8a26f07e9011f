"""What cannot work is refused in one line, with exit code 2, and does not come back."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.lab import Lab
from tests.slurm.runs import history, train_steps

pytestmark = pytest.mark.slurm


def test_bad_input_is_one_line_and_not_requeued(lab: Lab, repository: Path, tmp_path: Path) -> None:
    phase1, phase2 = repository / "slurm/phase1.sh", repository / "slurm/phase2.sh"

    def submit(name: str, *arguments: object) -> str:
        return lab.sbatch(*arguments, "--set", f"run.dir={tmp_path / name}")

    jobs = {
        "no data": submit("a", "--nodes=2", phase1, "--set", "data.path=/does/not/exist"),
        "no GPU": submit("b", "--partition=gpu", phase1),
        # Two ranks: the other one's end must not hide the exit code of the one that complained.
        "bad key": submit("c", "--ntasks-per-node=2", phase1, "--set", "run.sed=1"),
        "no phase 1": submit("d", phase2),
    }
    wanted = {
        "no data": "bertds: error: preflight: /does/not/exist: not found",
        "no GPU": "bertds: error: preflight: no free GPU: Slurm allocated 2 on each node "
        "(partition gpu), but the driver finds 0",
        "bad key": "unknown key run.sed (did you mean run.seed?)",
        "no phase 1": f"bertds: error: {tmp_path}/phase1/DONE is missing: phase 1 is not "
        "finished; run slurm/phase1.sh first, or set init.from=PATH",
    }
    for name, job in jobs.items():
        ended = lab.wait(job)
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), (name, lab.log(job))
        assert wanted[name] in lab.errors(job)[0]
        assert len(lab.errors(job)) == 1
        assert ended["Restarts"] == "0"


def test_a_refused_submission_is_one_line(
    lab: Lab, repository: Path, tmp_path: Path, tiny_data: Path
) -> None:
    site = Path(lab.variables["BERTDS_SITE"])
    site.write_text(site.read_text() + "SBATCH_PARTITION=nosuch\n")
    chain = ("slurm/pipeline.sh", "--work", tmp_path / "work", "--wiki", "x.bz2", "--vocab")
    for command, message in (
        (("slurm/submit.sh", "--nodes=2", "slurm/phase1.sh"), "invalid partition"),
        ((*chain, tiny_data / "tokenizer" / "vocab.txt"), "invalid partition"),
        ((*chain, "v.txt"), r"v\.txt: cannot be read"),
    ):
        answer = lab.try_run("env", "-C", repository, *command)
        assert answer.returncode == 2 and answer.stdout == ""
        assert re.fullmatch(rf"bertds: error: .*{message}.*\n", answer.stderr), answer.stderr
    assert lab.run("squeue", "-h") == ""


def test_ranks_that_would_train_alone_are_refused(
    lab: Lab,
    repository: Path,
    tmp_path: Path,
    slurm_recipe: Path,
    slurm_json: Path,
    tiny_data: Path,
) -> None:
    train = [
        str(repository / "bertds/train.py"),
        "--config",
        str(slurm_recipe),
        "--deepspeed_config",
        str(slurm_json),
        "--set",
        f"run.dir={tmp_path / 'run'}",
        f"data.path={tiny_data}",
    ]
    python, deepspeed = sys.executable, str(Path(sys.executable).with_name("deepspeed"))
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--exclusive"]
    accelerator = ["env", "DS_ACCELERATOR=cpu", f"PYTHONPATH={repository}"]
    for command, message in (
        # Each node would be a world of its own, and end with 0.
        ([*accelerator, python, deepspeed, "--num_accelerators", "1", *train], "train separately"),
        ([*accelerator, python, *train], "MASTER_ADDR and MASTER_PORT are not set"),
        (
            [*accelerator, "MASTER_ADDR=localhost", "MASTER_PORT=29500", python, *train],
            "2 Slurm nodes cannot meet at MASTER_ADDR=localhost",
        ),
    ):
        answer = lab.try_run(*srun, *command, timeout=200)
        assert answer.returncode == 2
        assert message in answer.stderr, answer.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_preflight_names_bad_nodes_and_the_job_goes_elsewhere(
    lab: Lab, repository: Path, tmp_path: Path, tiny_data: Path
) -> None:
    """Node 2 has lost the data's file system, node 3 its way to node 1 (Slurm sees both as fit)."""
    run = tmp_path / "phase1"
    lab.variables["BERTDS_PREFLIGHT_SECONDS"] = "45"  # the default
    lab.control("on", "node2", "mount", "-t", "tmpfs", "none", tiny_data)
    lab.control("on", "node3", "ip", "route", "add", "unreachable", "198.51.100.1")
    try:
        job = lab.sbatch(
            "--nodes=1-2", repository / "slurm/phase1.sh", "--set", "schedule.total_steps=20"
        )
        begin = time.monotonic()
        lab.until(lambda: "bad node node2" in lab.log(job), 90, job)
        assert time.monotonic() - begin < 60
        lab.until_restarted(job, 1)
        begin = time.monotonic()
        lab.until(lambda: "bad node node3" in lab.log(job), 90, job)
        assert time.monotonic() - begin < 60
        ended = lab.wait(job)
    finally:
        lab.control("on", "node2", "umount", tiny_data)
        lab.control("on", "node3", "ip", "route", "del", "unreachable", "198.51.100.1")
    assert ended["JobState"] == "COMPLETED", lab.log(job)
    assert (ended["ExcNodeList"], ended["NodeList"]) == ("node2,node3", "node1")
    assert f"bertds: preflight: bad node node2: {tiny_data}: contains neither" in lab.log(job)
    assert train_steps(run) == list(range(1, 21))
    assert [line.rsplit("on ", 1)[1] for line in history(run) if "preflight" in line] == [
        "node2",
        "node3",
    ]


def test_a_node_that_hangs_is_named_within_a_minute(
    lab: Lab, repository: Path, tmp_path: Path
) -> None:
    lab.variables["BERTDS_PREFLIGHT_SECONDS"] = "45"  # the default
    job = lab.sbatch("--nodes=2", repository / "slurm/phase1.sh")
    doctor = "'^[^ ]*python -m bertds.cli doctor'"
    lab.control("on", "node2", "bash", "-c", f"until pkill -STOP -f {doctor}; do sleep 0.05; done")
    begin = time.monotonic()
    lab.until(lambda: "bad node node2: " in lab.log(job), 90, job)
    assert time.monotonic() - begin < 60
    lab.until(lambda: lab.job(job)["ExcNodeList"] == "node2", 60, job)
    assert lab.job(job)["Priority"] != "0"  # not held
