"""Starts training and waits for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bertds.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_AGAIN, BertdsError
from bertds.pipeline.stages import Phase, say
from bertds.system.shipped_files import PACKAGE


def _processes(wanted: int) -> tuple[int, dict[str, str]]:
    """Return the number of ranks, and what they need in their environment."""
    import torch

    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    count = wanted or gpus or 1
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
        # Threads that wait in a loop bring a machine that has other work to do to a crawl.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    return count, environment


def train(phase: Phase, processes: int, overrides: list[str]) -> int:
    """Train one phase, unless that is done, and wait for its end.

    Args:
        phase: what is trained.
        processes: number of ranks; 0 = the GPUs of this machine, or 1.
        overrides: KEY=VALUE of the recipe, which win over the phase's own.

    Returns:
        The exit code of training.

    Raises:
        BertdsError: it ended with a code that means a fault.
    """
    from bertds.config.load import split_assignments
    from bertds.distributed.rank_info import free_port
    from bertds.training.setting_changes import is_done
    from bertds.training.settings import read_settings

    run_dir, recipe = phase.run, phase.recipe
    say(f"train {run_dir.name}")
    asked = split_assignments(overrides)
    settings = [one for one in phase.settings if one.partition("=")[0] not in asked]
    settings += overrides
    config, deepspeed = read_settings(recipe, None, settings)
    if is_done(run_dir, config, deepspeed.values):
        print(f"{run_dir}: done before", file=sys.stderr)
        return EXIT_OK
    count, environment = _processes(processes)
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [
        sys.executable,
        str(launcher),
        "--log_level",
        "critical",
        "--num_accelerators",
        str(count),
        "--master_port",
        str(free_port()),
        str(PACKAGE / "train.py"),
        "--config",
        recipe,
        "--set",
        *settings,
    ]
    began = time.monotonic()
    # In a session of its own: see wait_for.
    code = wait_for(subprocess.Popen(command, env=environment, start_new_session=True), run_dir)
    if code == 0 and not (run_dir / "DONE").is_file():
        # `deepspeed` answers 0 when its own launcher was killed by a signal.
        code = EXIT_RUN_AGAIN
    if code == 0:
        print(f"{run_dir.name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    elif code not in (1, 2, EXIT_RUN_AGAIN, EXIT_INTERRUPTED):
        raise BertdsError(f"{run_dir.name} ended with exit code {code}; see {run_dir / 'log.txt'}")
    return code


def wait_for(launcher: subprocess.Popen[Any], run_dir: Path) -> int:
    """Wait until training ends; Ctrl-C, SIGTERM or a closed terminal lets it save and stop.

    A terminal's Ctrl-C would reach the launcher too, which then dies with a traceback and kills
    ranks that still save. So it has a session of its own, and the wish to stop goes to the ranks
    as the file ``STOP``.

    Returns:
        The launcher's exit code; 75 if it finished all the same; 130 after a second Ctrl-C, which
        kills all its processes.
    """
    stop_file = run_dir / "STOP"
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT in asked:
            os.killpg(launcher.pid, signal.SIGKILL)
        elif not asked:
            run_dir.mkdir(parents=True, exist_ok=True)
            stop_file.touch()
            with contextlib.suppress(OSError):  # the terminal may be the one that was closed
                say("stopping, with everything saved (Ctrl-C again leaves at once)")
        asked.append(number)

    wishes = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in wishes}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, ask)
    try:
        code = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            stop_file.unlink(missing_ok=True)
    if asked.count(signal.SIGINT) > 1:
        return EXIT_INTERRUPTED
    return code or (EXIT_RUN_AGAIN if asked else EXIT_OK)
