"""Starts the ranks of a run on this machine, and restarts them when one is lost.

```text
bertds train --processes 4 --restarts 2
   rank 0 ... rank 3      each is a process in a session of its own
   one is lost            the others name it and exit; those that do not are killed after a while
   restart                from the newest checkpoint, with the same ranks
   the same rank again    without it, if the remaining ranks divide the global batch
```

A terminal's Ctrl-C reaches this process only, which asks the ranks to stop. They can save, and no
traceback is shown.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bertds.checkpoint.find import step_folders
from bertds.display.words import count
from bertds.distributed.rank_info import LAUNCHER_PID, free_port, starter_of
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_AGAIN,
    ConfigError,
    one_line,
)
from bertds.system import early_stop
from bertds.system.processes import usable_cores
from bertds.system.shipped_files import PACKAGE
from bertds.training.settings import read_settings

LOST = "BERTDS_LOST"
"""Environment variable of a restarted run: what ended the previous attempt."""
COMMAND = "BERTDS_COMMAND"
"""Environment variable: the user's command, for the run's record."""
GRACE_SECONDS = 1.0
"""How long the other ranks may take to exit before a restart. They wait in a collective operation
that cannot finish. A rank that fails reports its own error, this process reports one that was
killed, and a peer that kills a hung one reports why before it does."""
LAST_GRACE_SECONDS = 30.0
"""After the last attempt they may take longer, to name the lost rank in the run's log."""
_POLL_SECONDS = 0.05
_WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Loss:
    """The rank that failed first, and how."""

    rank: int
    code: int
    """Its exit code; -n if signal n terminated it."""

    def __str__(self) -> str:
        if self.code < 0:
            return f"rank {self.rank} was terminated by {_signal_name(-self.code)}"
        return f"rank {self.rank} exited with code {self.code}"


class Life:
    """The ranks of one attempt at a run.

    Args:
        command: what each rank runs.
        environments: each rank's variables, in the order of ranks.
        grace_seconds: how long the others may outlive a rank that failed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        grace_seconds: float,
    ) -> None:
        self._grace = grace_seconds
        # In sessions of their own, so that the terminal's signals reach only the launcher.
        self.ranks = [
            subprocess.Popen(list(command), env=dict(environment), start_new_session=True)
            for environment in environments
        ]
        self.loss: Loss | None = None
        self._since_loss = 0.0

    def codes(self) -> list[int | None]:
        """Return the exit codes so far, and record the first rank that failed."""
        codes = [rank.poll() for rank in self.ranks]
        if self.loss is None:
            failed = [
                Loss(rank, code)
                for rank, code in enumerate(codes)
                if code not in (None, EXIT_OK, EXIT_RUN_AGAIN, EXIT_INTERRUPTED)
            ]
            # Of several failures, one by a signal came first; the other ranks noticed and failed.
            failed.sort(key=lambda loss: (loss.code >= 0, loss.rank))
            if failed:
                self.loss, self._since_loss = failed[0], time.monotonic()
        return codes

    def is_over(self) -> bool:
        """Return whether all ranks have ended; kill those that outlive a failure for too long."""
        codes = self.codes()
        if self.loss is not None and None in codes:
            # Bad input fails on every rank, and each prints the same error: do not wait for them.
            grace = 1.0 if self.loss.code == EXIT_BAD_INPUT else self._grace
            if time.monotonic() - self._since_loss > grace:
                self.send(signal.SIGKILL)
        return None not in codes

    def send(self, number: int) -> None:
        """Send a signal to all ranks that still run."""
        for rank in self.ranks:
            if rank.poll() is None:
                with suppress(ProcessLookupError):
                    rank.send_signal(number)


class Launcher:
    """Runs the attempts of one run; see :func:`launch`."""

    def __init__(self) -> None:
        self._asked: list[int] = []
        self._life: Life | None = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask the ranks to stop and save; a second Ctrl-C kills them."""
        del frame
        again = bool(self._asked) and number == signal.SIGINT
        self._asked.append(number)
        if self._life is None:
            return
        if again:
            self._life.send(signal.SIGKILL)
        elif len(self._asked) == 1:
            self._life.send(signal.SIGTERM)
            with suppress(OSError):  # a closed terminal cannot show the message
                _say("stopping and saving (press Ctrl-C again to quit immediately)")

    def live(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        grace_seconds: float = LAST_GRACE_SECONDS,
    ) -> tuple[int, Loss | None]:
        """Run the ranks until all have ended.

        Returns:
            The exit code of the run, and the rank that was lost if the run failed.
        """
        # From here on the signals are handled below; they no longer end this process.
        early_stop.disarm()
        before = {number: signal.getsignal(number) for number in _WISHES}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._on_signal)
        life = self._life = Life(command, environments, grace_seconds)
        try:
            if self._asked:  # a signal came while the ranks were being started
                life.send(signal.SIGTERM)
            while not life.is_over():
                time.sleep(_POLL_SECONDS)
        # Also after an exception here: no rank may outlive the launcher.
        finally:
            life.send(signal.SIGKILL)
            self._life = None
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._outcome([rank.returncode for rank in life.ranks], life.loss)

    def _outcome(self, codes: list[int], loss: Loss | None) -> tuple[int, Loss | None]:
        if self._asked.count(signal.SIGINT) > 1 or EXIT_INTERRUPTED in codes:
            return EXIT_INTERRUPTED, None
        # A rank that is asked to stop before it listens exits at once; the others then lose it.
        early = {-signal.SIGTERM, 128 + signal.SIGTERM}
        if self._asked and (loss is None or early & set(codes)):
            return EXIT_RUN_AGAIN, None
        # Without a failure, one rank that must be resumed means that the run must be resumed.
        if loss is None:
            return (EXIT_RUN_AGAIN if EXIT_RUN_AGAIN in codes else EXIT_OK), None
        return (loss.code if loss.code == EXIT_BAD_INPUT else EXIT_FAILED), loss


def launch_from(args: argparse.Namespace) -> int:
    """Check the settings and train with ``args.processes`` ranks.

    Args:
        args: the parsed command line of ``bertds/train.py``.

    Raises:
        ConfigError: a setting is wrong; nothing was started.
    """
    if args.processes < 1 or args.restarts < 0:
        raise ConfigError(
            f"--processes={args.processes} --restarts={args.restarts}: --processes must be at "
            "least 1 and --restarts at least 0"
        )
    config, settings = read_settings(args.config, args.deepspeed_config, args.set)
    if not config.run.dir:
        raise ConfigError("run.dir is not set; give the run folder with --set run.dir=PATH")
    # Build the ranks' command line again, without --processes and --restarts.
    arguments: list[str] = []
    for name in ("config", "deepspeed_config"):
        if getattr(args, name):
            arguments += [f"--{name}", getattr(args, name)]
    arguments += ["--set", *args.set] if args.set else []
    arguments += ["--log-samples"] if args.log_samples else []
    # `guarded` removes --debug before args are parsed, so look for it in sys.argv.
    arguments += ["--debug"] if "--debug" in sys.argv else []
    # Under `python -m bertds` the program is a path to __main__.py: record the package's name.
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.name
    command = shlex.join([name, *sys.argv[1:]])
    return launch(arguments, settings, Path(config.run.dir), args.processes, args.restarts, command)


def launch(
    arguments: Sequence[str],
    settings: DeepSpeedSettings,
    run: Path,
    processes: int,
    restarts: int = 0,
    command: str = "",
) -> int:
    """Train with several ranks on this machine.

    Args:
        arguments: command-line arguments of ``bertds/train.py``.
        settings: the DeepSpeed JSON; decides which numbers of ranks divide the global batch.
        run: the run folder.
        processes: number of ranks.
        restarts: the maximum number of restarts after a loss.
        command: what the user typed, for the run's record.

    Returns:
        The run's exit code: 0, 1, 2, 75, or 130 after a second Ctrl-C.

    Raises:
        ConfigError: the number does not divide the global batch, or a launcher started this
            process.
    """
    # A launcher inside another one would start processes x processes ranks.
    starter = starter_of(os.environ)
    if starter:
        raise ConfigError(
            f"--processes={processes}: this is one of several processes started by {starter}; "
            "omit --processes, or start the command directly"
        )
    if not settings.finds_micro_batch:
        settings.batch_plan(processes)
    devices = _devices(processes)
    launcher = Launcher()
    last: Loss | None = None
    newest = _newest(run)
    lost = ""
    # Start all ranks, and start them again after each loss while restarts remain.
    for attempt in range(restarts + 1):
        line = [sys.executable, str(PACKAGE / "train.py"), *arguments]
        code, loss = launcher.live(
            line,
            _environments(devices, processes, command, lost),
            GRACE_SECONDS if attempt < restarts else LAST_GRACE_SECONDS,
        )
        if loss is None or code == EXIT_BAD_INPUT:
            return code
        if loss.code < 0:  # a killed rank could not report its own end
            _say(f"error: {loss}{' (out of memory?)' if loss.code == -signal.SIGKILL else ''}")
        if attempt == restarts:
            return code
        # A new checkpoint shows progress: the next loss of this rank counts as its first.
        now = _newest(run)
        # Leave out the device of a rank that is lost twice in a row without a new checkpoint.
        if last is not None and last.rank == loss.rank and now == newest:
            devices = _without(devices, loss.rank, settings)
        last, newest, lost = loss, now, str(loss)
        _say(
            f"restart {attempt + 1} of {restarts}: continuing from "
            f"{now or 'the beginning'} on {count(len(devices), 'process', 'processes')}"
        )
    raise AssertionError("the last attempt returns")


def _devices(processes: int) -> list[str]:
    """Return the device index of each rank, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name for name in visible.split(",") if name]
    return names[:processes] if len(names) >= processes else [str(n) for n in range(processes)]


def _without(devices: list[str], rank: int, settings: DeepSpeedSettings) -> list[str]:
    """Leave out a rank's device if the remaining ranks divide the global batch."""
    left = devices[:rank] + devices[rank + 1 :]
    try:
        if left and not settings.finds_micro_batch:
            settings.batch_plan(len(left))
    except ConfigError:
        return devices
    return left or devices


def _environments(
    devices: list[str], processes: int, command: str, lost: str
) -> list[dict[str, str]]:
    """Return each rank's environment variables, in the order of ranks."""
    common = dict(os.environ)
    # Without a limit each rank would start one thread per core of the whole machine.
    common.setdefault("OMP_NUM_THREADS", str(max(1, min(8, usable_cores() // len(devices)))))
    # Threads that spin while they wait slow down everything else on a busy machine.
    common.setdefault("OMP_WAIT_POLICY", "passive")
    common |= {
        LAUNCHER_PID: str(os.getpid()),
        "WORLD_SIZE": str(len(devices)),
        "LOCAL_WORLD_SIZE": str(len(devices)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    # Only after a device was left out: otherwise the user's own setting remains.
    if len(devices) < processes:
        common["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    for name, value in ((LOST, lost), (COMMAND, command)):
        if value:
            common[name] = value
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(devices))]


def _newest(run: Path) -> str:
    folders = step_folders(run / "checkpoints")
    return folders[0].name if folders else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(text: str) -> None:
    print(f"bertds: {one_line(text)}", file=sys.stderr, flush=True)
