"""The whole road: prepare, train both phases, export, evaluate, and a closing table.

Every part continues where it was stopped and repeats nothing that is done:

```text
WORK/
  data/        token shards, manifest, tokenizer
  phase1/      run folder                phase2/   run folder
  model/       the Hugging Face folder   scores.json        report/index.html
```
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bertds.errors import EXIT_OK, EXIT_RUN_AGAIN
from bertds.pipeline.launch import _train
from bertds.pipeline.stages import _export, _prepare, _say, _scores
from bertds.pipeline.summary import _closing
from bertds.report.write import write_report


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds pipeline",
        description="Prepare a corpus, pre-train both phases, export, evaluate. Run it again "
        "after a stop: it continues.",
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
        default="tiny_cpu_phase1",
        metavar="R.yaml",
        help="a recipe, by name or path (tiny_cpu_phase1)",
    )
    parser.add_argument(
        "--phase2",
        default="tiny_cpu_phase2",
        metavar="R.yaml",
        help="the recipe of phase 2 (tiny_cpu_phase2)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="ranks on this machine (default: its GPUs, or 1 on CPU)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="recipe overrides for both phases",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Walk the road. Returns 0, or 75 when a part was stopped and can be continued."""
    args = parse_args(argv)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    _prepare(args, work)
    code = EXIT_OK
    for number, recipe in ((1, args.phase1), (2, args.phase2)):
        code = code or _train(args, work, number, recipe)
    if code:
        if code == EXIT_RUN_AGAIN:
            print("stopped, with everything saved: run the same command again", file=sys.stderr)
        return code
    _export(work)
    scores = _scores(work)
    _say("report")
    write_report([work / "phase1", work / "phase2"], work / "report")
    _closing(work, scores)
    return EXIT_OK
