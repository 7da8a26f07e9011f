"""The command line of preparation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.request import CHOICES, PrepRequest
from data_prep.selection.filters import QUALITY_RULES

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

    def rare(text: str) -> str:
        return text if full else argparse.SUPPRESS

    # fmt: off
    group = parser.add_argument_group("sources (files or folders; mix as you like)")
    paths: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "PATH"}
    group.add_argument("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    group.add_argument("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    group.add_argument("--text", **paths, help="plain text, blank lines between documents")
    group.add_argument("--jsonl", **paths, help="JSON lines with a text in each")
    group.add_argument("--parquet", **paths, help="Parquet files with a text column")
    group.add_argument("--pubmed", **paths, help="BioASQ / PubMed JSON: address -> abstract")
    group.add_argument("--hf", **{**paths, "metavar": "NAME[:CONFIG]"},
                       help="Hugging Face datasets, or folders laid out as the Hub's")
    group.add_argument("--hf-split", metavar="SPLIT",
                       help=rare("the split of --hf (train)"))
    group.add_argument("--wiki-index", nargs="+", action="extend", metavar="FILE",
                       help=rare("indexes of multistream dumps (found if beside them)"))
    group.add_argument("--wiki-templates", metavar="FILE",
                       help=rare("YAML: templates whose words stay, as wiki/templates.yaml has"))
    group.add_argument("--text-layout", choices=CHOICES["text_layout"],
                       help=rare("what separates the documents of --text (blank-line)"))
    group.add_argument("--text-key", metavar="KEY",
                       help=rare("the text's key in --jsonl, column in --parquet and --hf (text)"))
    group.add_argument("--licence", action="append", metavar="SOURCE=TEXT",
                       help=rare("a source's licence for the manifest"))
    group.add_argument("--max-document-mb", type=int, metavar="N",
                       help=rare("refuse a document of more than N MB (256)"))
    group.add_argument("--max-unpack-ratio", type=int, metavar="N",
                       help=rare("refuse a compressed file of more than N times its size (250)"))
    group.add_argument("--language", metavar="CODE",
                       help=rare("whose sentence rules to use (en)"))

    group = parser.add_argument_group("vocabulary (one of the first two)")
    group.add_argument("--vocab", metavar="FILE",
                       help="vocab.txt, tokenizer.json (BPE too), a folder, a model's name")
    group.add_argument(
        "--train-vocab", type=int, metavar="N", help="train one of N tokens"
    )
    casing = group.add_mutually_exclusive_group()
    casing.add_argument("--uncased", dest="lower_case", action="store_true",
                        help="lower-case the text (default: as the vocabulary is)")
    casing.add_argument("--cased", dest="lower_case", action="store_false", help="keep its case")
    group.add_argument("--keep-accents", action="store_true",
                       help=rare("do not strip accents, lower-cased or not"))
    group.add_argument("--vocab-sample-bytes", type=int, metavar="N",
                       help=rare("text that --train-vocab reads (100000000)"))

    group.add_argument("--tokeniser", choices=CHOICES["tokeniser"],
                       help=rare("nanotoken: a faster package, compared on a sample (cache)"))

    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR",
                       help="where shards and manifest.json go: a folder, or a URL (s3://...)")
    group.add_argument("--work-dir", metavar="DIR",
                       help=rare("with --out URL: the local folder to work in (in $TMPDIR)"))
    group.add_argument("--validation-fraction", type=float, metavar="F",
                       help="share of documents held out (0.005)")
    group.add_argument("--seed", type=int, metavar="N", help="(12345)")
    group.add_argument("--shard-tokens", type=int, metavar="N",
                       help=rare("tokens of a shard, about (4000000)"))
    group.add_argument("--min-tokens", type=int, metavar="N",
                       help=rare("drop documents with fewer tokens (8)"))
    group.add_argument("--overwrite", action="store_true",
                       help="begin anew in a folder that was prepared with other settings")

    group = parser.add_argument_group("which documents (all but equal ones, unless asked)")
    group.add_argument("--dedup", choices=CHOICES["dedup"],
                       help="equal texts enter once (exact), or near-duplicates too (minhash)")
    group.add_argument("--mix", metavar="SOURCE=W,...",
                       help="how often a source's documents enter, e.g. wiki=1,books=2.5")
    group.add_argument("--decontaminate", nargs="+", action="extend", metavar="FILE",
                       help="drop documents that hold text of these test sets")
    group.add_argument("--quality", nargs="+", action="extend", choices=QUALITY_RULES,
                       metavar="RULE", help="drop what gopher, repetition or c4 calls no prose")
    group.add_argument("--keep-language", nargs="+", action="extend", metavar="CODE",
                       help="drop documents in other languages, e.g. en (needs py3langid)")
    group.add_argument("--min-words", type=int, metavar="N",
                       help=rare("drop documents with fewer words"))
    group.add_argument("--max-words", type=int, metavar="N",
                       help=rare("drop documents with more words"))
    group.add_argument("--keep-dropped", action="store_true",
                       help=rare("write what was left out to OUT/dropped/REASON.jsonl"))
    group.add_argument("--language-score", type=float, metavar="P",
                       help=rare("least probability of --keep-language (0.65)"))
    group.add_argument("--decontaminate-ngram", type=int, metavar="N",
                       help=rare("words that must agree (13; an example of 8 to N as a whole)"))
    group.add_argument("--minhash-bands", type=int, metavar="N", help=rare("(14)"))
    group.add_argument("--minhash-rows", type=int, metavar="N",
                       help=rare("hashes of a band (8)"))
    group.add_argument("--minhash-ngram", type=int, metavar="N",
                       help=rare("words that are hashed together (5)"))

    group = parser.add_argument_group("NVIDIA HDF5 (for NeMo, DeepLearningExamples, bing_bert)")
    group.add_argument("--instances", action="append", metavar="S:P",
                       help="also write rows of S tokens with P masks, e.g. 128:20")
    group.add_argument("--dupe-factor", type=int, metavar="N", help="passes (5)")
    group.add_argument("--compression", choices=CHOICES["compression"],
                       help=rare("of these files (gzip)"))
    group.add_argument(
        "--masked-lm-prob", type=float, metavar="P", help=rare("(0.15)")
    )
    group.add_argument("--short-seq-prob", type=float, metavar="P", help=rare("(0.1)"))
    group.add_argument("--whole-word-masking", action="store_true",
                       help=rare("mask all pieces of a word together"))
    group.add_argument("--ngram", type=int, metavar="N",
                       help=rare("mask runs of up to N words (1)"))
    group.add_argument("--pairs", choices=CHOICES["pairs"],
                       help=rare("next sentence, sentence order, or no pairs (nsp)"))
    group.add_argument("--dataset-name", metavar="NAME",
                       help=rare("of these files (wikicorpus_en, bookscorpus, ...)"))

    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=int, metavar="N",
                       help="processes (all cores); changes nothing but the time")
    group.add_argument("--executor", choices=EXECUTORS,
                       help="here (default), as a Slurm array job, or on a Ray cluster")
    group.add_argument("--task-count", type=int, metavar="N",
                       help="N tasks on any hosts that share --out prepare one corpus together")
    group.add_argument("--task-index", type=int, metavar="K",
                       help=rare("with --executor local: this process is task K of them (from 0)"))
    group.add_argument("--dry-run", action="store_true",
                       help="say from a sample how much work, disk and time lie ahead, and stop")
    group.add_argument("--debug", action="store_true", help=rare("show the traceback of an error"))
    group.add_argument("-h", "--help", action="help", help="show this and stop")
    group.add_argument("--help-all", action="store_true", help="show the rarely used options too")
    # fmt: on
    return parser
