"""``bertds train``: the training loop of ``bertds/train.py``, also with a NeMo configuration."""

from __future__ import annotations

import sys
from pathlib import Path

from bertds import train
from bertds.errors import EXIT_OK
from bertds.system.arguments import CommandParser, add_overrides
from bertds.train import parse_args

__all__ = ["main", "parse_args"]


def main(argv: list[str] | None = None) -> int:
    """Train; with ``--nemo-config``, translate a file first. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument.startswith("--nemo-config") for argument in arguments):
        return train_by_nemo(arguments)
    return train.command(arguments)


def train_by_nemo(argv: list[str]) -> int:
    """Translate a NeMo file, and train unless ``--write`` asks only for the files."""
    from bertds.system.idle_options import given_options, refuse_together
    from bertds.system.logs import start_logging
    from bertds.training.nemo.write import write_translation

    parser = CommandParser(
        prog="bertds train --nemo-config",
        description="Pre-train with a BERT configuration of NeMo.",
    )
    parser.add_argument(
        "--nemo-config", required=True, metavar="F.yaml", help="the configuration of NeMo"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write recipe.yaml and deepspeed.json to DIR instead of training",
    )
    add_overrides(parser, "override recipe or DeepSpeed JSON keys, as for bertds train")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="number of ranks")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="K",
        help="maximum number of restarts after a crash",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="nemo.key=value", help="NeMo keys to override"
    )
    args = parser.parse_intermixed_args(argv)
    refuse_together(given_options(parser, args), "write", ("set", "processes", "restarts"))
    start_logging(is_main=True)
    recipe, settings = write_translation(args.nemo_config, args.overrides, args.write)
    if args.write:
        print(
            f"wrote {recipe} and {settings}; train with: bertds train --processes N --config "
            f"{recipe} --deepspeed_config {settings}"
        )
        return EXIT_OK
    # The translated files are then trained like any other recipe.
    command = ["--config", str(recipe), "--deepspeed_config", str(settings)]
    if args.processes or args.restarts:
        command += ["--processes", str(args.processes), "--restarts", str(args.restarts)]
    return train.command([*command, *(["--set", *args.set] if args.set else [])])
