"""The command line of preparation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertds.system.idle_options import refuse_idle
from data_prep.request import CHOICES, PrepRequest
from data_prep.selection.filters import QUALITY_RULES

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
"""Options that do nothing without one of these."""
EXECUTORS = ("local", "slurm", "ray")

_EXAMPLES = """examples:
  %(prog)s --wiki enwiki-*.bz2 --books gutenberg/ --out data --vocab vocab.txt
  %(prog)s --text corpus.txt --out data --train-vocab 8192 \\
      --instances 128:20 --instances 512:80 --dupe-factor 5

Killed? Run the same command again. Look: DIR/report.html; rows: %(prog)s show DIR"""


class CommandLine(NamedTuple):
    """What the command line says."""

    request: PrepRequest
    executor: str
    """Where the tasks run: one of EXECUTORS."""
    dry_run: bool
    """Only forecast the work, disk space and time."""


def parse_args(argv: Sequence[str] | None) -> CommandLine:
    """Read the arguments (None = the command line's).

    Raises:
        ConfigError: a value is impossible.
    """
    parser = _parser(full=False)
    # Options that were not given are missing here: their defaults are those of PrepRequest.
    given = vars(parser.parse_args(argv))
    if given.pop("help_all", False):
        _parser(full=True).print_help()
        raise SystemExit(0)
    refuse_idle(given, GOES_WITH)
    if not given.get("out"):
        parser.error("--out DIR is missing")
    if bool(given.get("vocab")) == bool(given.get("train_vocab")):
        parser.error("give either --vocab FILE or --train-vocab N")
    given.pop("debug", None)  # it is run_command.guarded's
    executor, dry_run = given.pop("executor", "local"), given.pop("dry_run", False)
    return CommandLine(PrepRequest(**given), executor, dry_run)


class _OneLineEach(argparse.RawDescriptionHelpFormatter):
    """An option and its help on one line, so that all of them fit a screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return text.split(" [")[0] + " ..." if action.nargs == "+" else text


def _program() -> str:
    """Return how preparation was called: by the script's name, or as ``bertds prep``."""
    script = Path(sys.argv[0]).name
    return script if script == "build_wiki_books.py" else "bertds prep"


Group = argparse._ArgumentGroup
Rare = Callable[[str], str]
"""What makes an option's help: its own text, or none where only common options are shown."""


def _shown(text: str) -> str:
    return text


def _hidden(text: str) -> str:
    return argparse.SUPPRESS


def _parser(full: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="Turn corpora into training shards: clean text, sentences, tokens.",
        epilog=_EXAMPLES,
        formatter_class=_OneLineEach,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s --wiki|--books|--text|... PATH... --out DIR --vocab FILE [options]",
    )
    rare, section = _shown if full else _hidden, parser.add_argument_group
    _add_sources(section("sources (files or folders; mix as you like)"), rare)
    _add_vocabulary(section("vocabulary (one of the first two)"), rare)
    _add_output(section("output"), rare)
    _add_selection(section("which documents (all but equal ones, unless asked)"), rare)
    _add_nvidia_files(section("NVIDIA HDF5 (for NeMo, DeepLearningExamples, bing_bert)"), rare)
    _add_running(section("running"), rare)
    return parser


def _add_sources(group: Group, rare: Rare) -> None:
    add = group.add_argument
    paths: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "PATH"}
    add("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    add("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    add("--text", **paths, help="plain text, blank lines between documents")
    add("--jsonl", **paths, help="JSON lines with a text in each")
    add("--parquet", **paths, help="Parquet files with a text column")
    add("--pubmed", **paths, help="BioASQ / PubMed JSON: address -> abstract")
    add(
        "--hf",
        **{**paths, "metavar": "NAME[:CONFIG]"},
        help="Hugging Face datasets, or folders laid out as the Hub's",
    )
    add("--hf-split", metavar="SPLIT", help=rare("the split of --hf (train)"))
    add(
        "--wiki-index",
        nargs="+",
        action="extend",
        metavar="FILE",
        help=rare("indexes of multistream dumps (found if beside them)"),
    )
    add(
        "--wiki-templates",
        metavar="FILE",
        help=rare("YAML: templates whose words stay, as wiki/templates.yaml has"),
    )
    add(
        "--text-layout",
        choices=CHOICES["text_layout"],
        help=rare("what separates the documents of --text (blank-line)"),
    )
    add(
        "--text-key",
        metavar="KEY",
        help=rare("the text's key in --jsonl, column in --parquet and --hf (text)"),
    )
    add(
        "--licence",
        action="append",
        metavar="SOURCE=TEXT",
        help=rare("a source's licence for the manifest"),
    )
    add(
        "--max-document-mb",
        type=int,
        metavar="N",
        help=rare("refuse a document of more than N MB (256)"),
    )
    add(
        "--max-unpack-ratio",
        type=int,
        metavar="N",
        help=rare("refuse a compressed file of more than N times its size (250)"),
    )
    add("--language", metavar="CODE", help=rare("whose sentence rules to use (en)"))


def _add_vocabulary(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--vocab",
        metavar="FILE",
        help="vocab.txt, tokenizer.json (BPE too), a folder, a model's name",
    )
    add("--train-vocab", type=int, metavar="N", help="train one of N tokens")
    casing = group.add_mutually_exclusive_group()
    casing.add_argument(
        "--uncased",
        dest="lower_case",
        action="store_true",
        help="lower-case the text (default: as the vocabulary is)",
    )
    casing.add_argument("--cased", dest="lower_case", action="store_false", help="keep its case")
    add(
        "--keep-accents", action="store_true", help=rare("do not strip accents, lower-cased or not")
    )
    add(
        "--vocab-sample-bytes",
        type=int,
        metavar="N",
        help=rare("text that --train-vocab reads (100000000)"),
    )
    add(
        "--tokeniser",
        choices=CHOICES["tokeniser"],
        help=rare("nanotoken: a faster package, compared on a sample (cache)"),
    )


def _add_output(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--out",
        metavar="DIR",
        help="where shards and manifest.json go: a folder, or a URL (s3://...)",
    )
    add(
        "--work-dir",
        metavar="DIR",
        help=rare("with --out URL: the local folder to work in (in $TMPDIR)"),
    )
    add(
        "--validation-fraction", type=float, metavar="F", help="share of documents held out (0.005)"
    )
    add("--seed", type=int, metavar="N", help="(12345)")
    add("--shard-tokens", type=int, metavar="N", help=rare("tokens of a shard, about (4000000)"))
    add("--min-tokens", type=int, metavar="N", help=rare("drop documents with fewer tokens (8)"))
    add(
        "--overwrite",
        action="store_true",
        help="begin anew in a folder that was prepared with other settings",
    )


def _add_selection(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--dedup",
        choices=CHOICES["dedup"],
        help="equal texts enter once (exact), or near-duplicates too (minhash)",
    )
    add(
        "--mix",
        metavar="SOURCE=W,...",
        help="how often a source's documents enter, e.g. wiki=1,books=2.5",
    )
    add(
        "--decontaminate",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="drop documents that hold text of these test sets",
    )
    add(
        "--quality",
        nargs="+",
        action="extend",
        choices=QUALITY_RULES,
        metavar="RULE",
        help="drop what gopher, repetition or c4 calls no prose",
    )
    add(
        "--keep-language",
        nargs="+",
        action="extend",
        metavar="CODE",
        help="drop documents in other languages, e.g. en (needs py3langid)",
    )
    add("--min-words", type=int, metavar="N", help=rare("drop documents with fewer words"))
    add("--max-words", type=int, metavar="N", help=rare("drop documents with more words"))
    add(
        "--keep-dropped",
        action="store_true",
        help=rare("write what was left out to OUT/dropped/REASON.jsonl"),
    )
    add(
        "--language-score",
        type=float,
        metavar="P",
        help=rare("least probability of --keep-language (0.65)"),
    )
    add(
        "--decontaminate-ngram",
        type=int,
        metavar="N",
        help=rare("words that must agree (13; an example of 8 to N as a whole)"),
    )
    add("--minhash-bands", type=int, metavar="N", help=rare("(14)"))
    add("--minhash-rows", type=int, metavar="N", help=rare("hashes of a band (8)"))
    add("--minhash-ngram", type=int, metavar="N", help=rare("words that are hashed together (5)"))


def _add_nvidia_files(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--instances",
        action="append",
        metavar="S:P",
        help="also write rows of S tokens with P masks, e.g. 128:20",
    )
    add("--dupe-factor", type=int, metavar="N", help="passes (5)")
    add("--compression", choices=CHOICES["compression"], help=rare("of these files (gzip)"))
    add("--masked-lm-prob", type=float, metavar="P", help=rare("(0.15)"))
    add("--short-seq-prob", type=float, metavar="P", help=rare("(0.1)"))
    add(
        "--whole-word-masking", action="store_true", help=rare("mask all pieces of a word together")
    )
    add("--ngram", type=int, metavar="N", help=rare("mask runs of up to N words (1)"))
    add(
        "--pairs",
        choices=CHOICES["pairs"],
        help=rare("next sentence, sentence order, or no pairs (nsp)"),
    )
    add(
        "--dataset-name",
        metavar="NAME",
        help=rare("of these files (wikicorpus_en, bookscorpus, ...)"),
    )


def _add_running(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes (all cores); changes nothing but the time",
    )
    add(
        "--executor",
        choices=EXECUTORS,
        help="here (default), as a Slurm array job, or on a Ray cluster",
    )
    add(
        "--task-count",
        type=int,
        metavar="N",
        help="N tasks on any hosts that share --out prepare one corpus together",
    )
    add(
        "--task-index",
        type=int,
        metavar="K",
        help=rare("with --executor local: this process is task K of them (from 0)"),
    )
    add(
        "--dry-run",
        action="store_true",
        help="say from a sample how much work, disk and time lie ahead, and stop",
    )
    add("--debug", action="store_true", help=rare("show the traceback of an error"))
    add("-h", "--help", action="help", help="show this and stop")
    add("--help-all", action="store_true", help="show the rarely used options too")
