"""``bertds ten-minutes``: a model in ten minutes of one GPU, scored beside published ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import ConfigError
from bertds.pipeline.launch import add_training_options, explain_stop
from bertds.pipeline.ten_minutes import TenMinutes
from bertds.system.idle_options import given_options, refuse_idle


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds ten-minutes",
        description="Prepare about ten million words, train for nine minutes by the clock, export, "
        "score BLiMP, fine-tune SST-2, MRPC, CoLA and RTE, and print the table beside published "
        "rows. Run it again after a stop: it continues, and repeats nothing that is done.",
    )
    add = parser.add_argument
    add("--work", default="ten_minutes", metavar="DIR", help="where all goes (ten_minutes)")
    add("--wiki", nargs="+", default=[], metavar="PATH", help="Wikipedia dumps or <doc> files")
    add("--books", nargs="+", default=[], metavar="DIR", help="folders of books")
    add("--text", nargs="+", default=[], metavar="PATH", help="plain text, such as BabyLM's")
    add("--vocabulary", type=int, default=8192, metavar="N", help="tokens, trained (8192)")
    add("--recipe", default="ten_minutes_h100", metavar="R", help="or ten_minutes_h100_modern")
    add("--blimp", default="", metavar="FOLDER", help="BLiMP's 67 *.jsonl files")
    add("--limit", type=int, default=0, metavar="N", help="BLiMP pairs of each file (all)")
    add("--glue", default="", metavar="FOLDER", help="GLUE's folders; those missing are left out")
    add("--max-train-rows", type=int, default=0, metavar="N", help="of each GLUE task (all)")
    add_training_options(parser)
    args = parser.parse_args(argv)
    if not (args.wiki or args.books or args.text):
        parser.error("give the text with --wiki, --books or --text")
    needs = {"limit": ("blimp",), "max_train_rows": ("glue",)}
    refuse_idle(given_options(parser, args), needs)
    return args


def main(argv: list[str] | None = None) -> int:
    """Do all of it. Returns 0, or 75 when training was stopped and can be continued."""
    args = parse_args(argv)
    if args.limit < 0 or args.max_train_rows < 0:
        raise ConfigError("--limit and --max-train-rows: 0 (all) or more")
    for option in ("blimp", "glue"):  # said before ten minutes are spent
        folder = getattr(args, option)
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"--{option} {folder}: no such folder")
    from bertds.commands import evaluate, finetune

    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    code = TenMinutes(
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
    ).run()
    explain_stop(code)
    return code
