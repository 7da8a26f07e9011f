"""Drives the throw-away cluster of cluster.sh from Python."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
ASKING_SECONDS = 0.3
"""The pause between two questions to Slurm: each starts three processes, beside the training."""
COMMANDS = ("slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "nsenter", "ip")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# sbatch hands the caller's environment on to the job.
FOREIGN = ("SLURM_", "SBATCH_", "BERTDS_", "RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "PYTHON")


def cannot_run(message: str) -> NoReturn:
    """Skip a test for what this machine lacks; in CI, which installs it, that is a failure."""
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


class Lab:
    """A running cluster: three nodes in `main` and `low`, one with two fake GPUs in `gpu`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        return {
            **kept,
            "OMP_NUM_THREADS": "1",
            **self.variables,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }

    def control(self, verb: str, *arguments: object, timeout: float = 60) -> str:
        answer = subprocess.run(
            [str(SCRIPT), verb, str(self.folder), *map(str, arguments)],
            text=True,
            capture_output=True,
            timeout=timeout,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
        )
        assert answer.returncode == 0, f"{verb} {arguments}: {answer.stdout}{answer.stderr}"
        return answer.stdout.strip()

    def try_run(self, *command: object, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node."""
        return subprocess.run(
            [str(SCRIPT), "run", str(self.folder), *map(str, command)],
            text=True,
            capture_output=True,
            timeout=timeout,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
        )

    def run(self, *command: object, timeout: float = 90) -> str:
        answer = self.try_run(*command, timeout=timeout)
        assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout.strip()

    # -- jobs --------------------------------------------------------------------------------

    def sbatch(self, *arguments: object) -> str:
        return self.run("sbatch", "--parsable", *arguments)

    def job(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait(self, job: str, timeout: float = 480) -> dict[str, str]:
        """Wait until a job has ended for good; return what Slurm says about it."""
        self.until(lambda: self.state(job) in ENDED, timeout, job, ASKING_SECONDS)
        return self.job(job)

    def until(
        self, condition: Callable[[], object], timeout: float, job: str = "", pause: float = 0.05
    ) -> None:
        deadline = time.monotonic() + timeout
        look = 0.0
        while not condition():
            if job and time.monotonic() > look:
                look = time.monotonic() + 5
                ended = self.state(job) in ENDED and not condition()
                assert not ended, f"it has ended\n{self.log(job)}"
            if time.monotonic() > deadline:
                shown = self.run("scontrol", "show", "job", job) if job else ""
                raise AssertionError(f"nothing in {timeout} s\n{shown}\n{self.run('sinfo', '-Nl')}")
            time.sleep(pause)

    def until_steps(self, job: str, run: Path, more: int = 1, timeout: float = 480) -> None:
        """Wait until the job, as it runs now, has written some lines to metrics.jsonl."""
        begun = f" restart={self.restarts(job)} "

        def started() -> bool:
            history = run / "slurm" / "history"
            text = history.read_text() if history.is_file() else ""
            return any(begun in line and " start: " in line for line in text.splitlines())

        self.until(started, timeout, job)
        # The trainer first cuts metrics.jsonl to its checkpoint: only then lines count.
        log, metrics = run / "log.txt", run / "metrics.jsonl"
        said = lines(log)
        self.until(lambda: lines(log) > said, timeout, job)
        before = lines(metrics)
        self.until(lambda: lines(metrics) >= before + more, timeout, job)

    def restarts(self, job: str) -> int:
        return int(self.job(job)["Restarts"])

    def until_restarted(self, job: str, restart: int, timeout: float = 240) -> None:
        """Wait until a requeued job runs again. Slurm lets it wait a little; this does not."""

        hurried = False

        def runs() -> bool:
            nonlocal hurried
            now = self.job(job)
            if now["JobState"] == "PENDING" and now["Reason"] == "BeginTime" and not hurried:
                # Not at once: a node refuses a job that it has killed in the same second.
                self.try_run("scontrol", "update", f"jobid={job}", "starttime=now+2")
                hurried = True
            return int(now["Restarts"]) >= restart and now["JobState"] == "RUNNING"

        self.until(runs, timeout, job, ASKING_SECONDS)

    def log(self, job: str) -> str:
        path = Path(self.job(job)["StdErr"])
        return path.read_text() if path.is_file() else ""

    def errors(self, job: str) -> list[str]:
        return re.findall(r"^bertds: (?:error|preflight): .*$", self.log(job), re.MULTILINE)

    # -- nodes -------------------------------------------------------------------------------

    def kill_node(self, node: str) -> None:
        """Power cut, noticed at once (SlurmdTimeout alone would take half a minute)."""
        self.control("node-kill", node)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def kill_slurmd(self, node: str) -> None:
        """The node's daemon dies alone: what it has started lives on, unknown to Slurm."""
        self.control("on", node, "pkill", "-KILL", "-x", "slurmd")
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def ranks(self, node: str) -> int:
        """How many ranks run on a node, whether Slurm knows of them or not."""
        count = "pgrep -c -f '^python .*bertds/train.py' || true"
        return int(self.control("on", node, "bash", "-c", count))

    def revive_node(self, node: str) -> None:
        self.control("node-start", node)
        self.until(lambda: "down" not in self.run("sinfo", "-hN", "-n", node, "-o", "%T"), 30)

    def kill_rank(self, node: str) -> None:
        """SIGKILL to the trainer's Python process on a node."""
        self.control("on", node, "bash", "-c", "kill -KILL $(pgrep -f '^python .*bertds/train.py')")

    def clean(self) -> None:
        self.run("scancel", "--user", "root")
        self.until(lambda: not self.run("squeue", "-h", "-o", "%i"), 60)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.is_file() else 0
