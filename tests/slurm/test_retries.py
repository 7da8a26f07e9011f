from __future__ import annotations

from pathlib import Path

import pytest

from bertds.monitor.run_files import losses_of, read_object
from tests.slurm.conftest import STEPS
from tests.slurm.lab import Lab
from tests.slurm.runs import assert_same_run, history, train_steps

pytestmark = pytest.mark.slurm


def test_phase_two_waits_and_a_hopeless_run_gives_up(
    lab: Lab, repository: Path, tmp_path: Path
) -> None:
    phase1, phase2 = repository / "slurm/phase1.sh", repository / "slurm/phase2.sh"
    lab.variables["BERTDS_MAX_CRASHES"] = "1"
    lab.variables["BERTDS_PREFLIGHT"] = "quick"
    hopeless = tmp_path / "hopeless"
    diverges = ["--set", f"run.dir={hopeless}", "deepspeed.optimizer.params.lr=1e38"]
    crashing = lab.sbatch("--nodes=1", phase1, *diverges)

    first = lab.sbatch("--nodes=1", phase1, "--set", "schedule.total_steps=30")
    lab.until(lambda: (tmp_path / "phase1" / "slurm" / "job").is_file(), 60, first)
    second = lab.sbatch("--nodes=1", phase2, "--set", "schedule.total_steps=10")  # too early
    lab.until(lambda: lab.job(second)["Dependency"].startswith(f"afterok:{first}"), 60, second)
    assert f"waiting for Slurm job {first}" in lab.log(second)

    lab.until_restarted(crashing, 1)
    ended = lab.wait(crashing)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "1")
    assert [line.split(" crash ")[1][0] for line in history(hopeless) if " crash " in line] == [
        "1",
        "2",
    ]
    assert "giving up" in lab.log(crashing)

    assert lab.wait(first)["JobState"] == "COMPLETED", lab.log(first)
    assert lab.wait(second)["JobState"] == "COMPLETED", lab.log(second)
    assert lab.restarts(second) == 1
    assert train_steps(tmp_path / "phase2") == list(range(1, 11))
    assert f"weights and moments from {tmp_path}/phase1" in lab.log(second)


def test_jobs_on_one_node_resume_after_a_time_limit(
    lab: Lab, repository: Path, tmp_path: Path
) -> None:
    # A stand-in for Python: ended the first time, done the second.
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/starts\n'
        f"[ $(wc -l < {tmp_path}/starts) = 2 ] || exec sleep 100\n"
    )
    python.chmod(0o755)
    lab.variables["BERTDS_VENV"] = str(tmp_path / "venv")
    corpora = tmp_path / "corpora.txt"
    corpora.write_text("--text a.txt --out a\n--text 'b c.txt' --out b\n")
    job = lab.sbatch("--array=2", repository / "slurm/data_prep.sh", "--from", corpora)
    lab.until((tmp_path / "starts").is_file, 60)
    lab.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    lab.until_restarted(f"{job}_2", 1)
    assert lab.wait(f"{job}_2")["JobState"] == "COMPLETED"
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == ["-m bertds.cli prep --text b c.txt --out b"] * 2


def test_a_lost_rank_is_started_again_in_the_same_job(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path
) -> None:
    lab.variables["BERTDS_RESTARTS"] = "1"
    run = tmp_path / "phase1"
    job = lab.sbatch("--nodes=1", "--ntasks-per-node=2", repository / "slurm/phase1.sh")
    lab.until_steps(job, run, more=25)  # past a checkpoint
    lab.kill_rank(lab.job(job)["NodeList"])
    ended = lab.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), lab.log(job)
    assert "starting again in this job, from step_000000" in lab.log(job)
    assert [line.split(" nodes=")[1].split(" ", 1)[1][:7] for line in history(run)] == [
        "start: ",
        "crash 1",
        "start: ",
        "done",
    ]
    (lost,) = losses_of(read_object(run / "environment.json", []))
    assert "ended with exit code 137" in lost.what and 0 < lost.seconds < 240
    assert train_steps(run) == list(range(1, STEPS + 1))
    assert_same_run(run, undisturbed)


def test_a_finished_run_is_done_continues_or_refuses(
    lab: Lab, repository: Path, tmp_path: Path
) -> None:
    run = tmp_path / "phase1"
    lab.variables["BERTDS_PREFLIGHT"] = "off"

    def submit(steps: int, *settings: str) -> tuple[str, list[str]]:
        script = repository / "slurm/phase1.sh"
        job = lab.sbatch(script, "--set", f"schedule.total_steps={steps}", *settings)
        ended = lab.wait(job)
        return f"{ended['JobState']} {ended['ExitCode']}", lab.errors(job)

    assert submit(5) == ("COMPLETED 0:0", [])
    before = (run / "metrics.jsonl").read_bytes(), (run / "DONE").stat().st_mtime_ns
    assert submit(5) == ("COMPLETED 0:0", [])
    for setting, named in (
        ("deepspeed.optimizer.type=Lamb", "now deepspeed.optimizer.type=Lamb"),
        ("data.path=/nowhere", "data.path=/nowhere: no such file or folder"),
    ):
        outcome, errors = submit(5, setting)
        assert outcome == "FAILED 2:0" and len(errors) == 1 and named in errors[0], errors
    assert ((run / "metrics.jsonl").read_bytes(), (run / "DONE").stat().st_mtime_ns) == before
    assert history(run)[-1].endswith("bad input")
    assert submit(8) == ("COMPLETED 0:0", [])
    assert train_steps(run) == list(range(1, 9))
