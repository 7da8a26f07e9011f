"""Decisions of slurm/job.sh that need no cluster: `scontrol` is a function that answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CLEAN = ("SLURM", "SBATCH", "BERTDS", "MASTER", "OMP_", "RANK", "WORLD")


def bash(repository: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", f". slurm/common.sh\n{code}"],
        cwd=repository,
        text=True,
        capture_output=True,
        timeout=30,
        env={**environment, "BERTDS_SITE": "/dev/null", "SLURM_JOB_ID": "7", **variables},
    )


@pytest.mark.parametrize(
    ("answer", "restart", "goes_on"),
    [
        ("JobState=RUNNING Restarts=0", "", True),
        ("JobState=RUNNING Restarts=2", "2", True),
        ("JobState=RUNNING Restarts=3", "2", False),  # what a lost node kept alive
        ("JobState=PENDING Restarts=3", "2", False),
        ("JobState=CANCELLED Restarts=0", "", False),
        ("slurm_load_jobs error: Invalid job id specified", "", False),
    ],
)
def test_only_a_running_job_requeues_itself(
    repository: Path, answer: str, restart: str, goes_on: bool
) -> None:
    code = f'scontrol() {{ echo "JobId=7 {answer} Requeue=1"; }}\nleave_it_to_slurm\necho goes on'
    found = bash(repository, code, **({"SLURM_RESTART_COUNT": restart} if restart else {}))
    assert (found.stdout, found.returncode) == (("goes on\n", 0) if goes_on else ("", 75))


@pytest.mark.parametrize(
    ("exits", "stop", "requeued"),
    [
        (["75", "75"], "", 6),  # saved: may continue as often as it is stopped
        (["143", "143"], "USR1", 6),  # the time limit came while Python imported
        (["143", "143"], "", 3),  # another process ends the ranks at each start
        (["130", "1"], "", 3),
        (["137", "1"], "", 3),
    ],
)
def test_ranks_that_never_save_are_restarted_three_times(
    repository: Path, tmp_path: Path, exits: list[str], stop: str, requeued: int
) -> None:
    code = f"""
    scontrol() {{ echo "JobId=7 JobState=RUNNING Restarts=0"; [ "$1" != requeue ] || echo >> "$RUN/requeued"; }}
    NODES=1 SLURM_JOB_NODELIST=n1 RUN={tmp_path} STOP={stop}
    mkdir -p "$RUN/slurm"
    for start in 1 2 3 4 5 6; do
      BERTDS_EXITS=$RUN/exits
      mkdir -p "$BERTDS_EXITS"
      echo "{exits[0]} n1" > "$BERTDS_EXITS/rank_0"
      echo "{exits[1]} n1" > "$BERTDS_EXITS/rank_1"
      (decide 1) || {{ echo "ended $?"; break; }}
    done
    """  # noqa: E501
    found = bash(repository, code)
    assert len((tmp_path / "requeued").read_text()) == requeued
    assert ("ended 1" in found.stdout) == (requeued == 3)
    assert ("giving up" in found.stdout + found.stderr) == (requeued == 3)


@pytest.mark.parametrize(
    ("exits", "written", "outcome"),
    [
        (["0", "0"], "before", "0 done"),  # the same settings: the trainer says so
        (["2", "2"], "before", "2 bad input"),  # other ones: refused
        (["137", "1"], "before", "0 crash 1"),  # a longer schedule crashed at its start: requeued
        (["0", "0"], "now", "0 done"),
        (["0", "1"], "now", "0 done"),  # a rank that fails on its way out costs nothing
        (["143", "143"], "now", "0 done"),
    ],
)
def test_an_earlier_done_counts_only_if_the_trainer_agrees(
    repository: Path, tmp_path: Path, exits: list[str], written: str, outcome: str
) -> None:
    code = f"""
    scontrol() {{ echo "JobId=7 JobState=RUNNING Restarts=0"; }}
    NODES=1 SLURM_JOB_NODELIST=n1 RUN={tmp_path} BERTDS_EXITS={tmp_path}/exits
    mkdir -p "$RUN/slurm" "$BERTDS_EXITS"
    [ {written} = now ] || echo '{{"step": 5}}' > "$RUN/DONE"
    DONE_BEFORE=$(done_file)
    echo '{{"step": 9}}' > "$RUN/.DONE"
    [ {written} = before ] || mv "$RUN/.DONE" "$RUN/DONE"
    echo "{exits[0]} n1" > "$BERTDS_EXITS/rank_0"
    echo "{exits[1]} n1" > "$BERTDS_EXITS/rank_1"
    (decide 1)
    echo "$? $(sed 's/.*nodes=n1 //; s/:.*//' "$RUN/slurm/history" | head -n 1)"
    """
    found = bash(repository, code)
    assert found.stdout.splitlines()[-1] == outcome, found.stdout + found.stderr
