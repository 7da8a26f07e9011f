"""The process: its place among the others, and the wish to stop.

A stop can be wished by a signal (SIGTERM, SIGINT, SIGUSR1), by a file named ``STOP`` in the run
folder, by a time limit, or by the launcher's death (the ``deepspeed`` launcher, killed, leaves
its ranks running as orphans). Any rank may notice; all ranks agree in a small all-reduce before
the update, and stop after the step under way.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bertds.errors import EXIT_INTERRUPTED, ConfigError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of the run."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0


def find_place(environment: Mapping[str, str] | None = None) -> Place:
    """Read this process's place from the launcher's variables and complete them.

    RANK, WORLD_SIZE and LOCAL_RANK come from ``deepspeed`` or ``torchrun``; under a bare ``srun``
    from SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID. With none of them the process is alone and
    MASTER_ADDR / MASTER_PORT are set to a free port of this machine.

    Raises:
        ConfigError: the variables contradict each other, as when several Slurm tasks each think
            that they are alone, or a several-node job meets at localhost.
    """
    values = dict(os.environ if environment is None else environment)
    slurm_tasks = int(values.get("SLURM_NTASKS", "1") or 1) if "SLURM_PROCID" in values else 1
    if "RANK" not in values and slurm_tasks > 1:
        values["RANK"] = values["SLURM_PROCID"]
        values["WORLD_SIZE"] = str(slurm_tasks)
        values["LOCAL_RANK"] = values.get("SLURM_LOCALID", "0")
        if "MASTER_ADDR" not in values or "MASTER_PORT" not in values:
            raise ConfigError(
                f"{slurm_tasks} Slurm tasks, but MASTER_ADDR and MASTER_PORT are not set; start "
                "with slurm/phase1.sh, or set both for all tasks"
            )
    if "RANK" not in values:
        values.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        values["MASTER_PORT"] = str(free_port())
    try:
        place = Place(
            rank=int(values["RANK"]),
            local_rank=int(values.get("LOCAL_RANK", "0")),
            world_size=int(values.get("WORLD_SIZE", "1")),
        )
    except ValueError:
        raise ConfigError(
            "RANK, LOCAL_RANK and WORLD_SIZE must be integers, found "
            + ", ".join(f"{k}={values.get(k)!r}" for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        ) from None
    if not 0 <= place.rank < place.world_size:
        raise ConfigError(f"RANK={place.rank} is not below WORLD_SIZE={place.world_size}")
    nodes = int(values.get("SLURM_STEP_NUM_NODES", values.get("SLURM_NNODES", "1")) or 1)
    if "SLURM_PROCID" in values and nodes > 1:
        # What the launcher started on this node: if that is the whole world, it is so on each.
        here = int(values.get("LOCAL_WORLD_SIZE", values.get("LOCAL_SIZE", "0")) or 0)
        if place.world_size < nodes or place.world_size == here:
            raise ConfigError(
                f"{nodes} Slurm nodes, but WORLD_SIZE={place.world_size}: each node would train "
                "alone; start the ranks with slurm/phase1.sh (srun), not with `srun deepspeed`"
            )
        if values.get("MASTER_ADDR", "") in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(
                f"{nodes} Slurm nodes cannot meet at MASTER_ADDR={values['MASTER_ADDR']}; "
                "it must be the first node's name"
            )
    if environment is None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update({key: values[key] for key in names if key in values})
    return place


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StopWatch:
    """Collects this rank's wish to stop. The ranks' agreement is the training loop's matter.

    Args:
        run_dir: where a ``STOP`` file is looked for.
        max_hours: time limit of this process, or None.
        job_seconds: how long the batch system lets this job train on, or None; see
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
        self._parent = os.getppid()
        self._next_look = 0.0

    def listen(self) -> StopWatch:
        """Install the signal handlers (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if number == signal.SIGINT:
            # A terminal's Ctrl-C reaches every process of its group at once, and launchers pass
            # it on as SIGTERM: only a second SIGINT, a moment later, means "leave at once".
            if self._first_interrupt is not None and now - self._first_interrupt > 0.5:
                os.write(2, b"\nsecond interrupt: leaving at once, nothing is saved\n")
                os._exit(EXIT_INTERRUPTED)
            self._first_interrupt = self._first_interrupt or now
        self._noticed = signal.Signals(number).name

    def reason(self) -> str:
        """Return why this rank wants to stop, or "" if it does not; once wished, it stays wished.

        Cheap enough for every step.
        """
        if not self._noticed:
            self._noticed = self._look()
        return self._noticed

    def _look(self) -> str:
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline:
            return "run.max_hours is over"
        if self.job_deadline is not None and now > self.job_deadline:
            return "the Slurm job's time is nearly over"
        if now > self._next_look:  # a file system is not asked more than once a second
            self._next_look = now + 1.0
            if self.stop_file.exists():
                return f"the file {self.stop_file} exists"
            if os.getppid() != self._parent:
                return "the launcher is gone"
        return ""

    @staticmethod
    def ignore_signals() -> None:
        """Ignore stop signals from now on.

        Python restores a handled SIGUSR1 to its default while it shuts down, so that a late one
        would kill a run that has already finished its work.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def seconds_left_of_job(
    margin_minutes: float, environment: Mapping[str, str] | None = None
) -> float | None:
    """Return how many seconds a Slurm job may train on before it should stop and save.

    Args:
        margin_minutes: time to keep for saving; never more than a tenth of the whole job, so that
            a short one trains too.
        environment: SLURM_JOB_END_TIME and SLURM_JOB_START_TIME in seconds since 1970.

    Returns:
        None outside a job, or where Slurm does not say.
    """
    values = os.environ if environment is None else environment
    try:
        end = float(values["SLURM_JOB_END_TIME"])
        start = float(values.get("SLURM_JOB_START_TIME", "") or time.time())
    except (KeyError, ValueError):
        return None
    return end - time.time() - min(margin_minutes * 60.0, 0.1 * max(end - start, 0.0))


def command_line() -> str:
    """Return the command that started this process, for the run's record."""
    return " ".join([Path(sys.executable).name, *sys.argv])
