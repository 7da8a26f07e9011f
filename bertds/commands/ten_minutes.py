"""``bertds ten-minutes``: trains a model in ten minutes on one GPU, and compares its scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import ConfigError
from bertds.pipeline.launch import add_training_options, explain_stop
from bertds.pipeline.stages import work_folder
from bertds.pipeline.ten_minutes import TenMinutes
from bertds.system.arguments import CommandParser
from bertds.system.idle_options import given_options, refuse_idle


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds ten-minutes",
        description="Prepare about 10 million words, train for 9 minutes, export, score BLiMP, "
        "fine-tune on SST-2, MRPC, CoLA and RTE, and print the results next to "
        "published ones. After an interruption, run the same command again to resume.",
    )
    add = parser.add_argument
    add("--work", default="ten_minutes", metavar="DIR", help="output folder (default: ten_minutes)")
    add("--wiki", nargs="+", default=[], metavar="PATH", help="Wikipedia dumps or <doc> files")
    add("--books", nargs="+", default=[], metavar="DIR", help="folders of books")
    add("--text", nargs="+", default=[], metavar="PATH", help="plain text, such as BabyLM")
    add(
        "--vocabulary",
        type=int,
        default=8192,
        metavar="N",
        help="size of the trained vocabulary (default: 8192)",
    )
    add(
        "--recipe",
        default="ten_minutes_h100",
        metavar="R",
        help="recipe, a name or path (default: ten_minutes_h100)",
    )
    add("--blimp", default="", metavar="FOLDER", help="folder with the 67 *.jsonl files of BLiMP")
    add(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="number of BLiMP pairs per file (default: all)",
    )
    add(
        "--glue",
        default="",
        metavar="FOLDER",
        help="folder with the GLUE folders; missing tasks are skipped",
    )
    add(
        "--max-train-rows",
        type=int,
        default=0,
        metavar="N",
        help="number of training rows per GLUE task (default: all)",
    )
    add_training_options(parser)
    args = parser.parse_args(argv)
    if not (args.wiki or args.books or args.text):
        parser.error("no text to train on; give --wiki, --books or --text")
    needs = {"limit": ("blimp",), "max_train_rows": ("glue",)}
    refuse_idle(given_options(parser, args), needs)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run all stages. Returns 0, or 75 if training was stopped and can be continued."""
    args = parse_args(argv)
    if args.limit < 0 or args.max_train_rows < 0:
        raise ConfigError("--limit and --max-train-rows must be 0 (all) or more")
    for option in ("blimp", "glue"):  # checked before ten minutes are spent
        folder = getattr(args, option)
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"--{option} {folder}: no such folder")
    # Imported here, so that the parser alone does not load torch.
    from bertds.commands import evaluate, finetune

    work = work_folder(args.work)
    model = TenMinutes(
        work=work,
        recipe=args.recipe,
        wiki=args.wiki,
        books=args.books,
        text=args.text,
        vocabulary=args.vocabulary,
        blimp=args.blimp,
        glue=args.glue,
        limit=args.limit,
        max_train_rows=args.max_train_rows,
        processes=args.processes,
        overrides=args.set,
        evaluate=evaluate.main,
        finetune=finetune.main,
    )
    model.check()
    work.mkdir(parents=True, exist_ok=True)
    code = model.run()
    explain_stop(code)
    return code
