"""Collects this rank's stop requests.

A stop can be requested by a signal (SIGTERM, SIGINT, SIGUSR1), by a file named ``STOP`` in the run
folder, by a time limit, or by the death of the launcher (a killed ``deepspeed`` launcher leaves its
ranks running as orphans). Any rank may notice it. All ranks agree in a small all-reduce before the
update, and stop after the current step. A process that was started from a shell continues when the
shell ends. A closed terminal (SIGHUP) is a stop request unless ``nohup`` has made it ignored.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from bertds.distributed.rank_info import has_launcher
from bertds.errors import EXIT_INTERRUPTED
from bertds.system.early_stop import STOP_SIGNALS


class StopRequests:
    """Collects this rank's stop requests. The training loop lets the ranks agree.

    Args:
        run_dir: the folder of the ``STOP`` file.
        max_hours: time limit of this process, or None.
        job_seconds: how long the batch system lets this job continue training, or None; see
            :func:`seconds_left_of_job`.
    """

    def __init__(
        self, run_dir: Path, max_hours: float | None, job_seconds: float | None = None
    ) -> None:
        self.stop_file = Path(run_dir) / "STOP"
        now = time.monotonic()
        self.deadline = None if max_hours is None else now + max_hours * 3600.0
        self.job_deadline = None if job_seconds is None else now + job_seconds
        self._noticed = ""
        self._first_interrupt: float | None = None
        self._parent = os.getppid() if has_launcher() else None
        self._next_look = 0.0

    def listen(self) -> StopRequests:
        """Install the signal handlers (main thread only)."""
        for number in STOP_SIGNALS:
            under_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not under_nohup:
                signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if number == signal.SIGINT:
            # A terminal's Ctrl-C reaches every process of its group at once, and launchers pass
            # it on as SIGTERM. Only a second SIGINT, a moment later, means "leave at once".
            if self._first_interrupt is not None and now - self._first_interrupt > 0.5:
                os.write(2, b"\nsecond interrupt: leaving at once, nothing is saved\n")
                os._exit(EXIT_INTERRUPTED)
            self._first_interrupt = self._first_interrupt or now
        self._noticed = signal.Signals(number).name

    def reason(self) -> str:
        """Return why this rank wants to stop, or "". A request is never withdrawn.

        Cheap enough for every step.
        """
        if not self._noticed:
            self._noticed = self._look()
        return self._noticed

    def wish(self, reason: str) -> None:
        """Request a stop for a reason that was noticed elsewhere."""
        self._noticed = self._noticed or reason

    def _look(self) -> str:
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline:
            return "run.max_hours was reached"
        if self.job_deadline is not None and now > self.job_deadline:
            return "the time limit of the Slurm job is close"
        if now > self._next_look:  # access the file system at most once per second
            self._next_look = now + 1.0
            if self.stop_file.exists():
                return f"the file {self.stop_file} exists"
            if self._parent is not None and os.getppid() != self._parent:
                return "the launcher is gone"
        return ""

    @staticmethod
    def ignore_signals() -> None:
        """Ignore stop signals from now on.

        Python restores the default of a handled SIGUSR1 during shutdown, so that a late one would
        kill a run that has already finished its work.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def seconds_left_of_job(
    margin_minutes: float, environment: Mapping[str, str] | None = None
) -> float | None:
    """Return how many seconds a Slurm job may continue training before it should stop and save.

    Args:
        margin_minutes: time to reserve for saving; at most 10% of the whole job, so that a short
            one can train too.
        environment: SLURM_JOB_END_TIME and SLURM_JOB_START_TIME in seconds since 1970.

    Returns:
        None outside a job, or if Slurm does not set the variables.
    """
    values = os.environ if environment is None else environment
    try:
        end = float(values["SLURM_JOB_END_TIME"])
        start = float(values.get("SLURM_JOB_START_TIME", "") or time.time())
    except (KeyError, ValueError):
        return None
    return end - time.time() - min(margin_minutes * 60.0, 0.1 * max(end - start, 0.0))
