"""Pre-train BERT for one phase.

    bertds train --processes 8 --deepspeed_config ds_configs/F.json \
        --config bertds/recipes/R.yaml --set run.dir=RUN data.path=DATA

The same command resumes a run that was stopped. ``deepspeed bertds/train.py``, ``torchrun``,
``mpirun``, ``srun`` (through ``slurm/``) and plain ``python`` start it too.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import this clone's package, not an installed one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bertds.errors import EXIT_OK, EXIT_RUN_AGAIN
from bertds.system import early_stop
from bertds.system.arguments import CommandParser, add_overrides
from bertds.system.fault_points import reached
from bertds.system.run_command import guarded
from bertds.system.start_up import loading

if TYPE_CHECKING:
    from bertds.training.run import Run

BUILD = "bertds.training.build"
"""The module that builds a run, and imports torch."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--help`` imports nothing heavy."""
    parser = CommandParser(
        prog="bertds train",
        description="Pre-train BERT for one phase. Run the same command again to resume a "
        "stopped run.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped early with everything "
        "saved (run the same command again).",
    )
    parser.add_argument("--config", metavar="R.yaml", help="recipe, a name or path")
    parser.add_argument(
        "--deepspeed_config",
        metavar="F.json",
        help="DeepSpeed JSON, a name or path (default: the one named in the recipe)",
    )
    add_overrides(
        parser,
        "override recipe keys (run.dir=PATH data.path=PATH schedule.total_steps=N ...) or, with "
        "deepspeed.KEY=VALUE, the DeepSpeed JSON",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="start N ranks on this machine, each on its own GPU, or all on the CPU if there is "
        "no GPU",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="K",
        help="with --processes: after a crash, restart from the newest checkpoint, at most K times",
    )
    parser.add_argument(
        "--log-samples", action="store_true", help="record the sample numbers of each step"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    # DeepSpeed's and torch's launchers may pass these. The rank is read from the environment.
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build everything, train, and report how the run ended.

    Returns:
        0 when the last step is done, 75 when the run stopped early and can be resumed.
    """
    args = parse_args(argv)
    if args.processes or args.restarts:
        return start_processes(args)
    build = import_build(loading(BUILD))
    run = build.build_run(
        args.config, args.deepspeed_config, args.set, log_samples=args.log_samples
    )
    if run is None:  # the run was already done
        return EXIT_OK
    with run:
        finished = train(run)
        run.close(finished)
    return EXIT_OK if finished else EXIT_RUN_AGAIN


def start_processes(args: argparse.Namespace) -> int:
    """Start one process per rank with the same arguments; return the run's exit code."""
    from bertds.training.launch import launch_from

    return launch_from(args)


def import_build(collector: AbstractContextManager[None]) -> ModuleType:
    """Import ``BUILD``.

    Args:
        collector: sets the garbage collector for the time of the import.
    """
    # When a peer is lost, torch's C++ code would print stack traces around our one-line error.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with collector:
        return import_module(BUILD)


def train(run: Run) -> bool:
    """Train until the last step, or until all ranks agree to stop.

    Returns:
        Whether the last step is done.
    """
    state, engine, metrics = run.state, run.engine, run.metrics
    run.validate_before_training()
    reason = run.agreement.reason_to_stop()
    while not run.is_finished() and not reason:
        if not run.wait_for_batch():  # the store gave no data within the limit
            break
        batch = run.next_batch()
        learning_rate = run.learning_rate(state.step, state.hours)
        engine.set_learning_rate(learning_rate)
        scales = run.agreement.begin(batch)  # one small all-reduce: the whole batch's counts
        for micro_step, micro_batch in enumerate(batch.micro_batches):
            # Seeded by step and micro step, so that a resumed run draws the same dropout masks.
            engine.seed_dropout(run.config.run.seed, state.step, micro_step)
            output = engine.forward_backward(micro_batch.to(engine.device), **scales)
            run.measure(output, micro_batch)
        run.update(batch)  # collects stop requests; skips a bad gradient; fails after too many
        metrics.write_if_due(state, learning_rate, run.stall_seconds, last=run.is_finished())
        run.validate_if_due()
        reason = run.agreement.reason_to_stop()
        run.save_if_due(force=bool(reason))
    finished = run.is_finished() and run.validate()
    # Without this, what was done before a store gave no data would be lost.
    run.save_if_due(force=True)
    return finished


def command(argv: list[str] | None = None) -> int:
    """Run :func:`main` in this process; a stop signal ends it at once until the run can save."""
    with early_stop.armed():
        reached("run.start")
        return main(argv)


def entry(argv: list[str] | None = None) -> int:
    """Run :func:`command`; errors become one line and an exit code."""
    return guarded(command, argv)


class _CallableModule(ModuleType):
    """Make ``bertds.train(recipe, ...)`` train; see :func:`bertds.api.training.train`."""

    def __call__(self, *arguments: object, **named: object) -> object:
        """Train in this process."""
        result: object = import_module("bertds.api").train(*arguments, **named)
        return result


# The module is both the script and the function of the Python API.
sys.modules[__name__].__class__ = _CallableModule


if __name__ == "__main__":
    raise SystemExit(entry())
