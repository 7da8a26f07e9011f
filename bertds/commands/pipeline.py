"""The pipeline, end to end: prepare, train, export, evaluate, and a closing table.

Every part continues where it was stopped and repeats nothing that is done:

```text
WORK/
  data/        token shards, manifest, tokenizer, report.html
  phase1/      run folder                phase2/   run folder
  facts/       without a corpus of your own, instead of both: what the demo trains on
  run/         and its run folder
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
)
from bertds.pipeline.summary import close
from bertds.report.write import write_report


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds pipeline",
        description="Prepare a corpus, pre-train both phases, export, evaluate. Without --wiki and "
        "--books: prepare an excerpt of Wikipedia, and train on facts about countries, which a "
        "small model can understand in minutes. Run it again after a stop: it continues.",
    )
    parser.add_argument("--work", default="demo", metavar="DIR", help="where all goes (demo)")
    parser.add_argument("--wiki", nargs="+", default=[], metavar="DUMP", help="Wikipedia dumps")
    parser.add_argument("--books", nargs="+", default=[], metavar="DIR", help="folders of books")
    parser.add_argument("--vocab", metavar="FILE", help="a vocab.txt instead of training one")
    parser.add_argument("--train-vocab", type=int, default=2048, metavar="N", help="size (2048)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="share of documents held out (0.05)",
    )
    parser.add_argument(
        "--phase1",
        metavar="R.yaml",
        help="a recipe, by name or path (tiny_cpu_phase1)",
    )
    parser.add_argument(
        "--phase2",
        metavar="R.yaml",
        help="the recipe of phase 2 (tiny_cpu_phase2)",
    )
    add_training_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Walk the road. Returns 0, or 75 when a part was stopped and can be continued."""
    args = parse_args(argv)
    work = Path(args.work)
    # Whoever names recipes means the excerpt to be trained on.
    is_demo = not (args.wiki or args.books or args.phase1 or args.phase2)
    phases = [facts_phase(work)] if is_demo else own_phases(args, work)
    check_pipeline(
        phases,
        args.set,
        processes=args.processes,
        vocab=args.vocab,
        vocab_size=args.train_vocab,
        model=work / "model",
    )
    work.mkdir(parents=True, exist_ok=True)
    facts = prepare_facts(work) if is_demo else None  # first: it may need the network
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
        write_report(runs, work / "report")
    except Exception as error:  # the model is trained and exported; only a page is missing
        print(f"no report: {type(error).__name__}: {error}", file=sys.stderr)
    close(work, runs, scores)
    return EXIT_OK
