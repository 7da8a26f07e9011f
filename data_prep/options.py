"""The command line of preparation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bertds.system.idle_options import refuse_idle
from data_prep.option_parser import option_parser
from data_prep.request import PrepRequest

GOES_WITH = {
    "hf_split": ("hf",),
    "wiki_index": ("wiki",),
    "wiki_templates": ("wiki",),
    "text_layout": ("text",),
    "text_key": ("jsonl", "parquet", "hf"),
    "vocab_sample_bytes": ("train_vocab",),
    "language_score": ("keep_language",),
    "decontaminate_ngram": ("decontaminate",),
    **dict.fromkeys(("dupe_factor", "compression", "dataset_name"), ("instances",)),
    "task_index": ("task_count",),
}
"""Options that have no effect without one of these others."""


class CommandLine(NamedTuple):
    """The parsed command line."""

    request: PrepRequest
    executor: str
    """Where the tasks run: one of EXECUTORS."""
    dry_run: bool
    """Only estimate the work, disk space and time."""


def parse_args(argv: Sequence[str] | None) -> CommandLine:
    """Read the arguments (None = the command line's).

    Raises:
        ConfigError: a value is impossible.
    """
    parser = option_parser(full=False)
    # Options that were not given are absent, so that the defaults are those of PrepRequest.
    given = vars(parser.parse_args(argv))
    if given.pop("help_all", False):
        option_parser(full=True).print_help()
        raise SystemExit(0)
    refuse_idle(given, GOES_WITH)
    if not given.get("out"):
        parser.error("--out DIR is required")
    if bool(given.get("vocab")) == bool(given.get("train_vocab")):
        parser.error("give either --vocab FILE or --train-vocab N")
    given.pop("debug", None)  # handled by run_command.guarded
    executor, dry_run = given.pop("executor", "local"), given.pop("dry_run", False)
    return CommandLine(PrepRequest(**given), executor, dry_run)
