"""``bertds status RUN``: shows the progress of a run from another shell, without changing it."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import textwrap
import time
from typing import Any

from bertds.display.words import in_words
from bertds.errors import EXIT_OK, ConfigError
from bertds.monitor.progress import describe
from bertds.monitor.status import Status, expand, read_status, seconds_of_all
from bertds.system.arguments import CommandParser, add_runs
from bertds.system.option_types import finite


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds status",
        description="Show how runs are doing. Run folders are never modified.",
    )
    add_runs(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", type=finite, metavar="S", help="repeat every S seconds")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the state of each run."""
    args = parse_args(argv)
    if args.watch is not None and not 0 < args.watch < math.inf:
        raise ConfigError(f"--watch {args.watch:g}: must be a number of seconds above 0")
    while True:
        runs = [run for given in args.runs for run in expand(given)]
        states = [read_status(run) for run in runs]
        if args.json:
            print(json.dumps([_numbers(state) for state in states], indent=1))
        else:
            for state in states:
                print(in_lines(state))
            left = seconds_of_all(states)
            if left > 0 and (len(states) > 1 or states[-1].later_seconds):
                print(f"all phases: {in_words(left)} left at the recent speed")
        if args.watch is None:
            return EXIT_OK
        time.sleep(args.watch)
        print()


def bar(share: float) -> str:
    """Return a bar of 24 characters."""
    return ("#" * round(24 * min(1.0, max(0.0, share)))).ljust(24, "-")


def in_lines(status: Status) -> str:
    """Return a status as a few lines of text."""
    share = status.step / status.total_steps if status.total_steps else 0.0
    head = f"{status.run}: {status.state}"
    if status.state == "killed" and not status.last:
        head += " before its first step"
    if status.owner and status.state in ("training", "silent"):
        head += f" ({status.owner})"
    lines = [head, f"  [{bar(share)}] step {status.step:,} of {status.total_steps:,}, {share:.1%}"]
    if status.state != "done" and status.seconds_per_step:
        lines[-1] += f", {in_words(status.seconds_left)} left"
    if status.last:
        lines.append(f"  {describe(status.last)}")
    if status.validation:
        lines.append(f"  {describe(status.validation)}")
    kept = ", ".join(status.checkpoints[-3:]) or "none yet"
    lines.append(f"  checkpoints: {kept}; starts: {status.starts}")
    if status.losses:
        lost = in_words(sum(loss.seconds for loss in status.losses))
        lines[-1] += f"; {lost} lost, most recently because {status.losses[-1].what}"
    if status.state in ("training", "silent"):
        lines.append(f"  last metrics line {in_words(status.age_seconds)} ago")
    if status.state == "silent":
        lines.append(
            "  ! no metrics for a long time; see log.txt, and find where the ranks wait with py-spy"
        )
    if status.state == "killed":
        lines.append(
            f"  ! {status.owner} ended without a message: it was killed (out of memory, or kill "
            "-9), or its machine failed; see log.txt and dmesg, then run the same command again"
        )
    lines += [f"  ! {found}" for found in [*status.problems, *status.found]]
    # The first line is not wrapped, since a path in two parts cannot be copied.
    return "\n".join([lines[0], *map(wrapped, lines[1:])])


def wrapped(line: str) -> str:
    """Return a line wrapped to the terminal's width with an indent; 80 columns in a pipe."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    return textwrap.fill(
        line,
        max(40, shutil.get_terminal_size().columns),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _numbers(status: Status) -> dict[str, Any]:
    return {
        "run": os.fspath(status.run),
        "state": status.state,
        "step": status.step,
        "total_steps": status.total_steps,
        "seconds_left": round(status.seconds_left, 1),
        "later_phases_seconds": round(status.later_seconds, 1),
        "age_seconds": round(status.age_seconds, 1),
        "train": status.last,
        "validation": status.validation,
        "checkpoints": status.checkpoints,
        "starts": status.starts,
        "lost_seconds": round(sum(loss.seconds for loss in status.losses), 1),
        "warnings": [str(found) for found in status.found],
        "unreadable": status.problems,
    }
