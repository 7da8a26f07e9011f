"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

OVERRIDES = "override recipe keys, or DeepSpeed JSON keys with deepspeed.KEY=VALUE"


def add_overrides(parser: argparse.ArgumentParser, text: str = OVERRIDES) -> None:
    """Add ``--set KEY=VALUE ...``, which may be repeated.

    Args:
        parser: of the command.
        text: the help of the option.
    """
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``RUN...``."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, or folders that contain several",
    )
