"""Trains one phase of a pipeline and waits for its end."""

from __future__ import annotations

import argparse
import sys
import time

from bertds.errors import EXIT_OK, EXIT_RUN_AGAIN
from bertds.pipeline.stages import Phase, say
from bertds.system.arguments import add_overrides


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--processes`` and ``--set``, the last two arguments of :func:`train`."""
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="number of ranks (default: one per GPU, or 1 on a CPU)",
    )
    add_overrides(parser, "recipe overrides; deepspeed.KEY=VALUE overrides the JSON")


def explain_stop(code: int) -> None:
    """Print how to continue, if training ended with ``EXIT_RUN_AGAIN``."""
    if code == EXIT_RUN_AGAIN:
        print(
            "stopped with everything saved; run the same command again to resume", file=sys.stderr
        )


def train(phase: Phase, processes: int, overrides: list[str]) -> int:
    """Train one phase and wait for its end, unless it is already complete.

    Args:
        phase: the phase to train.
        processes: number of ranks; 0 = the number of GPUs of this machine, or 1.
        overrides: KEY=VALUE of the recipe, which override the phase's own values.

    Returns:
        The exit code of training.
    """
    import torch

    from bertds.training.launch import launch
    from bertds.training.setting_changes import is_done

    run_dir = phase.run
    say(f"train {run_dir}")
    config, deepspeed = phase.read(overrides)
    if is_done(run_dir, config, deepspeed.values):
        print(f"{run_dir}: already done", file=sys.stderr)
        return EXIT_OK
    began = time.monotonic()
    arguments = ["--config", phase.recipe]
    arguments += ["--deepspeed_config", phase.json] if phase.json else []
    arguments += ["--set", *phase.assignments(overrides)]
    code = launch(arguments, deepspeed, run_dir, processes or torch.cuda.device_count() or 1)
    if code == EXIT_OK:
        print(f"training {run_dir} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return code
