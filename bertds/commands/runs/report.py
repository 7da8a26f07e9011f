"""``bertds report RUN...``: writes one page on one or more runs, to be read and passed on.

A phase 2 that starts from a phase 1 continues its curves. Several runs share the same charts. The
page contains everything that it shows; the charts are also written next to it as PNG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bertds.errors import EXIT_OK
from bertds.report.write import TITLE, write_report
from bertds.system.arguments import CommandParser, add_runs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds report",
        description="Write an HTML report, with PNG figures, on one or more runs.",
    )
    add_runs(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="output folder for index.html and the figures (default: report)",
    )
    parser.add_argument("--title", default=TITLE, help="title of the report")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the report."""
    args = parse_args(argv)
    print(write_report(args.runs, args.out, args.title), file=sys.stderr)
    return EXIT_OK
