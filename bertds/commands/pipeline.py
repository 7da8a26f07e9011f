"""The whole pipeline: prepare, train, export, evaluate, and print a closing table.

Every part continues where it was stopped and repeats nothing that is complete:

```text
WORK/
  data/        token shards, manifest, tokenizer, report.html
  phase1/      run folder                phase2/   run folder
  facts/       data of the demo, which is used if no corpus is given
  run/         its run folder, instead of phase1/ and phase2/
  model/       the Hugging Face folder   scores.json        report/index.html
```
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bertds.errors import EXIT_OK
from bertds.pipeline.checks import check_pipeline
from bertds.pipeline.launch import add_training_options, explain_stop, train
from bertds.pipeline.stages import (
    export_model,
    facts_phase,
    own_phases,
    prepare,
    prepare_facts,
    say,
    score_phases,
    work_folder,
)
from bertds.pipeline.summary import close
from bertds.report.write import TITLE, write_report
from bertds.system.arguments import CommandParser
from bertds.system.idle_options import given_options, refuse_idle, refuse_together
from bertds.system.option_types import finite


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds pipeline",
        description="Prepare a corpus, pre-train both phases, export and evaluate. Without "
        "--wiki and --books: prepare an excerpt of Wikipedia and train on facts "
        "about countries, which a small model can learn in minutes. After an "
        "interruption, run the same command again to resume.",
    )
    parser.add_argument(
        "--work", default="demo", metavar="DIR", help="output folder (default: demo)"
    )
    parser.add_argument("--wiki", nargs="+", default=[], metavar="DUMP", help="Wikipedia dumps")
    parser.add_argument("--books", nargs="+", default=[], metavar="DIR", help="folders of books")
    parser.add_argument(
        "--vocab", metavar="FILE", help="use this vocab.txt instead of training one"
    )
    parser.add_argument(
        "--train-vocab",
        type=int,
        default=2048,
        metavar="N",
        help="size of the trained vocabulary (default: 2048)",
    )
    parser.add_argument(
        "--validation-fraction",
        type=finite,
        default=0.05,
        metavar="F",
        help="fraction of documents to hold out (default: 0.05)",
    )
    parser.add_argument(
        "--phase1",
        metavar="R.yaml",
        help="recipe of phase 1, a name or path (default: tiny_cpu_phase1)",
    )
    parser.add_argument(
        "--phase2",
        metavar="R.yaml",
        help="recipe of phase 2 (default: tiny_cpu_phase2)",
    )
    for phase in (1, 2):
        parser.add_argument(
            f"--phase{phase}-json",
            metavar="F.json",
            help=f"DeepSpeed JSON of phase {phase} (default: the one named in the recipe)",
        )
    add_training_options(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the recipes, JSON files, vocabulary and folders, then exit. Use this to "
        "prepare for training on other machines: the GPUs and memory of this machine are ignored. "
        "Batch sizes are checked only with --processes.",
    )
    parser.add_argument(
        "--prep-arguments",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="with --check: treat all remaining arguments as arguments of bertds prep (omit --out)",
    )
    args = parser.parse_args(argv)
    given = given_options(parser, args)
    refuse_idle(given, {"prep_arguments": ("check",)})
    refuse_together(given, "vocab", ("train_vocab",))
    preparation = ("wiki", "books", "vocab", "train_vocab", "validation_fraction")
    refuse_together(given, "prep_arguments", preparation)
    return args


def vocabulary(args: argparse.Namespace, work: Path) -> tuple[str | None, int]:
    """Return the vocabulary that is given, or None, and the size of the one to be trained.

    Raises:
        ConfigError: an argument of preparation is invalid.
    """
    if args.prep_arguments:
        from data_prep.options import parse_args as parse_preparation

        request = parse_preparation([*args.prep_arguments, "--out", str(work / "data")]).request
        return str(request.vocab) if request.vocab else None, request.train_vocab
    # Before training on other machines, the data may already be prepared here.
    prepared = work / "data" / "tokenizer"
    if args.check and prepared.is_dir():
        return str(prepared), 0
    return args.vocab, args.train_vocab


def main(argv: list[str] | None = None) -> int:
    """Run the pipeline. Returns 0, or 75 if a part was stopped and can be resumed."""
    args = parse_args(argv)
    work = work_folder(args.work)
    # If the user names recipes, the excerpt is the training corpus, not only part of the demo.
    is_demo = not (
        (args.wiki or args.books or args.phase1 or args.phase2)
        or (args.phase1_json or args.phase2_json or args.prep_arguments)
    )
    vocab, vocab_size = vocabulary(args, work)
    phases = [facts_phase(work)] if is_demo else own_phases(args, work)
    # Errors of a later part are found before the first one begins, which may take days.
    check_pipeline(
        phases,
        args.set,
        processes=args.processes,
        vocab=vocab,
        vocab_size=vocab_size,
        model=work / "model",
        here=not args.check,
    )
    if args.check:
        print(f"{work}: recipes, JSONs, vocabulary and folders are in order")
        return EXIT_OK
    facts = prepare_facts(work) if is_demo else None  # first, since it may need the network
    prepare(args, work)
    code = EXIT_OK
    for phase in phases:
        code = code or train(phase, args.processes, args.set)
    if code:
        explain_stop(code)
        return code
    runs = [phase.run for phase in phases]
    export_model(runs[-1], work / "model")
    scores = score_phases(runs, work / "scores.json", facts)
    say("report")
    try:
        title = "BERT on facts about countries" if is_demo else TITLE
        write_report(runs, work / "report", title)
    except Exception as error:  # only the page is missing; the model is trained and exported
        print(f"the report could not be written: {type(error).__name__}: {error}", file=sys.stderr)
    close(work, runs, scores)
    return EXIT_OK
