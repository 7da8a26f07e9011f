from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import STEPS, Gate
from tests.slurm.lab import Lab
from tests.slurm.runs import assert_same_run, history, metrics, samples, train_steps

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(1500)
def test_disturbed_on_two_nodes_it_equals_two_processes_left_alone(
    lab: Lab, gate: Gate, repository: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Timed out, requeued, asked by the user, a rank killed, a node lost: nothing can be seen.

    Before each disturbance the run waits at the gate, so that it cannot be over before, however
    fast the machine is.
    """
    run = tmp_path / "phase1"
    gate.until(15)
    # Slurm's own time limit: its signal comes some 20 s before the minute's end, or earlier. (The
    # limit itself is lifted then: on a busy machine Python may still be starting.)
    job = lab.sbatch("--nodes=2", "--time=1", "--signal=B:USR1@50", repository / "slurm/phase1.sh")
    lab.until(lambda: "got SIGUSR1" in lab.log(job), 90, job)
    lab.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    lab.until_restarted(job, 1)

    gate.until(45)
    lab.until_steps(job, run)
    lab.run("scontrol", "requeue", job)
    lab.until_restarted(job, 2)

    gate.until(75)
    lab.until_steps(job, run)
    lab.run("scancel", "--signal=USR1", job)  # to the ranks
    lab.until_restarted(job, 3)

    gate.until(105)
    lab.until_steps(job, run)
    lab.run("scancel", "--batch", "--signal=USR1", job)  # to the script, as before a time limit
    lab.until_restarted(job, 4)

    gate.until(150)
    lab.until_steps(job, run, more=25)  # past a checkpoint of its own
    lab.kill_rank("node2")
    lab.until_restarted(job, 5)
    assert "rank 1 on node2 ended with exit code 137" in "\n".join(history(run))

    gate.until(180)
    lab.until_steps(job, run)
    lab.kill_node("node2")
    lab.until_restarted(job, 6)
    assert lab.job(job)["NodeList"] == "node[1,3]"

    gate.open()
    ended = lab.wait(job)
    lab.revive_node("node2")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), lab.log(job)
    assert train_steps(run) == list(range(1, STEPS + 1))
    assert_same_run(run, undisturbed)


def test_processes_left_by_a_killed_slurmd_write_nothing_more(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """The node's daemon dies and its ranks live on, while the job begins again on another node."""
    run = tmp_path / "phase1"
    job = lab.sbatch("--nodes=1", "--ntasks-per-node=2", repository / "slurm/phase1.sh")
    lab.until_steps(job, run, more=25)
    node = lab.job(job)["NodeList"]
    try:
        lab.kill_slurmd(node)
        assert lab.ranks(node) == 2
        lab.until_restarted(job, 1)
        assert lab.job(job)["NodeList"] != node
        lab.until(lambda: lab.ranks(node) == 0, 60)
        ended = lab.wait(job)
    finally:
        lab.kill_node(node)
        lab.revive_node(node)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), lab.log(job)
    assert train_steps(run) == list(range(1, STEPS + 1))
    assert_same_run(run, undisturbed)


def test_it_restarts_on_the_remaining_node(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path
) -> None:
    lab.run("scontrol", "update", "nodename=node3", "state=drain", "reason=test")
    try:
        run = tmp_path / "phase1"
        job = lab.sbatch("--nodes=1-2", repository / "slurm/phase1.sh", "--log-samples")
        lab.until_steps(job, run)
        assert lab.job(job)["NodeList"] == "node[1-2]"
        lab.kill_node("node1")  # the first one, where the batch script runs
        lab.until_restarted(job, 1)
        assert lab.job(job)["NodeList"] == "node2"
        assert lab.wait(job)["JobState"] == "COMPLETED", lab.log(job)
    finally:
        lab.run("scontrol", "update", "nodename=node3", "state=resume")
        lab.revive_node("node1")
    assert samples(run) == samples(undisturbed)
    assert train_steps(run) == list(range(1, STEPS + 1))
    for mine, theirs in zip(metrics(run), metrics(undisturbed), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_one_job_per_run_folder_and_a_cancelled_one_stays_cancelled(
    lab: Lab,
    repository: Path,
    tmp_path: Path,
    slurm_recipe: Path,
    slurm_json: Path,
    tiny_data: Path,
) -> None:
    run = tmp_path / "phase1"
    endless = ["--set", "schedule.total_steps=1000000"]
    first = lab.sbatch("--nodes=2", repository / "slurm/phase1.sh", *endless)
    lab.until_steps(first, run)

    second = lab.sbatch("--nodes=1", repository / "slurm/phase1.sh", *endless)
    by_hand = lab.try_run(  # without the scripts, on another host
        sys.executable,
        repository / "bertds/train.py",
        "--config",
        slurm_recipe,
        "--deepspeed_config",
        slurm_json,
        *endless,
        f"run.dir={run}",
        f"data.path={tiny_data}",
    )
    refused = lab.wait(second)
    assert (refused["JobState"], refused["ExitCode"]) == ("FAILED", "2:0")
    assert lab.errors(second) == [
        f"bertds: error: {run}: in use by Slurm job {first}; wait for it, cancel it, or choose "
        "another run.dir"
    ]
    assert by_hand.returncode == 2 and f"Slurm job {first}" in by_hand.stderr, by_hand.stderr
    assert lab.state(first) == "RUNNING"

    lab.run("scancel", first)
    assert lab.wait(first)["JobState"] == "CANCELLED"
    time.sleep(6)  # a requeue would have been seen after three
    assert lab.state(first) == "CANCELLED" and lab.restarts(first) == 0
    # It had time to save, and the folder is free.
    saved = (run / "checkpoints" / "latest").read_text().strip()
    assert train_steps(run)[-1] == int(saved.removeprefix("step_"))
    third = lab.sbatch(
        "--nodes=1",
        repository / "slurm/phase1.sh",
        "--set",
        "run.max_hours=0",
        "schedule.total_steps=1000000",
    )
    lab.until(lambda: lab.restarts(third) >= 1, 240, third)
    (run / "STOP").touch()  # the user's way to stop: no requeue until it is gone
    lab.until(lambda: lab.job(third)["Priority"] == "0", 240, third)
    assert "stopped by the file" in lab.log(third)
