"""``bertds speedrun``: measures the time to a held-out loss, and keeps a table of records."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bertds.errors import EXIT_OK, ConfigError
from bertds.pipeline.checks import check_pipeline
from bertds.pipeline.launch import add_training_options, explain_stop, train
from bertds.pipeline.speedrun import phase_of, read_records, record_of, table, track_of
from bertds.pipeline.stages import EXCERPT_VOCABULARY, prepare_excerpt, work_folder
from bertds.system.arguments import CommandParser
from bertds.system.atomic_files import append_line
from bertds.system.idle_options import given_options, refuse_together
from bertds.system.option_types import finite

TARGET = 5.0
"""In nats. A model of word frequencies alone has about 6.2 on the excerpt."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds speedrun",
        description="Train until the loss on fixed held-out text reaches a target, and add a "
        "record of the time, with a checksum, to --records. Without --data the text is the "
        "excerpt of Wikipedia from the demo, which is the same for all users. Records of the "
        "same track can be compared.",
    )
    add = parser.add_argument
    add("--work", default="speedrun", metavar="DIR", help="output folder (default: speedrun)")
    add("--data", default="", metavar="DIR", help="prepared data to use instead of the excerpt")
    add(
        "--recipe",
        default="small_cpu",
        metavar="R",
        help="recipe, a name or path (default: small_cpu)",
    )
    add(
        "--target",
        type=finite,
        default=TARGET,
        metavar="LOSS",
        help=f"held-out loss to reach, in nats (default: {TARGET:g})",
    )
    add(
        "--by",
        default="",
        metavar="NAME",
        help="your name, for the record (default: your login name)",
    )
    add(
        "--records",
        default="records.jsonl",
        metavar="FILE",
        help="file of records (default: records.jsonl)",
    )
    add("--table", action="store_true", help="check and print the records, then exit")
    add_training_options(parser)
    args = parser.parse_args(argv)
    others = ("work", "data", "recipe", "target", "by", "processes", "set")
    refuse_together(given_options(parser, args), "table", others)
    return args


def main(argv: list[str] | None = None) -> int:
    """Train and record the time, or print the table. Returns 0, or 75 if training was stopped."""
    args = parse_args(argv)
    records = Path(args.records)
    if args.table:
        print(table(read_records(records)))
        return EXIT_OK
    if args.target <= 0:
        raise ConfigError(f"--target {args.target:g}: must be a loss in nats above 0")
    # Everything that the record needs is checked before the run, which may take hours.
    by = args.by or _login_name()
    if not by.isprintable():
        raise ConfigError(f"--by {by!r}: must be printable text, on one line")
    if not records.absolute().parent.is_dir():
        raise ConfigError(f"--records {records}: its folder does not exist")
    known = read_records(records) if records.exists() else []
    work = work_folder(args.work)
    data = Path(args.data) if args.data else work / "data"
    phase = phase_of(work / "run", args.recipe, data, args.target)
    config, _ = phase.read(args.set)
    if args.data:
        track_of(data, config, args.target)  # raises if the data cannot give a record
    else:
        check_pipeline(
            [phase],
            args.set,
            processes=args.processes,
            vocab=None,
            vocab_size=EXCERPT_VOCABULARY,
            model=work / "model",
        )
        prepare_excerpt(work)
    code = train(phase, args.processes, args.set)
    if code != EXIT_OK:
        explain_stop(code)
        return code
    record = record_of(phase.run, data, args.target, by)
    # The command can be repeated after a run is complete; it must not add a second record.
    if record.metrics in [one.metrics for one in known]:
        print(f"{records}: this run is already recorded", file=sys.stderr)
    else:
        append_line(records, json.dumps(asdict(record)))
        known.append(record)
    # Only records of the same track can be compared.
    print(table([one for one in known if one.track == record.track]))
    return EXIT_OK


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no entry in passwd
        raise ConfigError("--by NAME is required: this user has no login name") from None
