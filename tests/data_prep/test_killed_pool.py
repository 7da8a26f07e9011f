"""A preparation that is killed with its workers, as by a second Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from data_prep.workers.pool import Workers

if __name__ == "__main__":
    with Workers(2) as workers:
        workers.run(time.sleep, [0.0, 0.0], lambda result: None)
        print(os.environ.get("PYTHONWARNINGS"))
        sys.stdout.flush()
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
"""


@pytest.mark.parametrize("warnings", [None, "ignore::DeprecationWarning"])
def test_no_leaked_semaphores_are_reported(
    tmp_path: Path, repository: Path, warnings: str | None
) -> None:
    """multiprocessing's tracker removes them, after everything else has ended."""
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = str(repository)
    if warnings:
        environment["PYTHONWARNINGS"] = warnings
    # The pipes are closed when the tracker, the last process, has ended.
    done = subprocess.run(
        [sys.executable, str(script), str(signal.SIGKILL.value)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == f"{warnings}\n"  # the environment is as before
    assert done.stderr == ""
