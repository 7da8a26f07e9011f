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

After an interruption, run the same command again to resume. The report is DIR/report.html;
%(prog)s show DIR prints rows."""


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
        parser.error("--out DIR is required")
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
    group = parser.add_argument_group("sources (files or folders, in any combination)")
    paths: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "PATH"}
    group.add_argument("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    group.add_argument("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    group.add_argument("--text", **paths, help="plain text, blank lines between documents")
    group.add_argument("--jsonl", **paths, help="JSON lines files with a text in each object")
    group.add_argument("--parquet", **paths, help="Parquet files with a text column")
    group.add_argument("--pubmed", **paths, help="BioASQ / PubMed JSON: URL -> abstract")
    group.add_argument("--hf", **{**paths, "metavar": "NAME[:CONFIG]"},
                       help="Hugging Face datasets, or folders with the layout of one")
    group.add_argument("--hf-split", metavar="SPLIT",
                       help=rare("split of --hf to read (default: train)"))
    group.add_argument("--wiki-index", nargs="+", action="extend", metavar="FILE",
                       help=rare("indexes of multistream dumps (found if next to the dumps)"))
    group.add_argument("--wiki-templates", metavar="FILE",
                       help=rare("YAML file of templates to keep as text, like "
                                 "wiki/templates.yaml"))
    group.add_argument("--text-layout", choices=CHOICES["text_layout"],
                       help=rare("what separates the documents of --text (default: blank-line)"))
    group.add_argument("--text-key", metavar="KEY",
                       help=rare("JSON key or column that has the text (default: text)"))
    group.add_argument("--licence", action="append", metavar="SOURCE=TEXT",
                       help=rare("licence of a source, recorded in the manifest"))
    group.add_argument("--max-document-mb", type=int, metavar="N",
                       help=rare("refuse documents larger than N MB (default: 256)"))
    group.add_argument("--max-unpack-ratio", type=int, metavar="N",
                       help=rare("refuse files that unpack to more than N times their size (250)"))
    group.add_argument("--language", metavar="CODE",
                       help=rare("language of the sentence splitter's rules (default: en)"))

    group = parser.add_argument_group("vocabulary (--vocab or --train-vocab is required)")
    group.add_argument("--vocab", metavar="FILE",
                       help="vocab.txt, tokenizer.json (also BPE), a folder or a model name")
    group.add_argument(
        "--train-vocab", type=int, metavar="N", help="train a vocabulary of N tokens"
    )
    casing = group.add_mutually_exclusive_group()
    casing.add_argument("--uncased", dest="lower_case", action="store_true",
                        help="lower-case the text (default: as in the vocabulary)")
    casing.add_argument("--cased", dest="lower_case", action="store_false",
                        help="keep the case of the text")
    group.add_argument("--keep-accents", action="store_true",
                       help=rare("do not strip accents, even from lower-cased text"))
    group.add_argument("--vocab-sample-bytes", type=int, metavar="N",
                       help=rare("bytes of text that --train-vocab reads (default: 100000000)"))

    group.add_argument("--tokeniser", choices=CHOICES["tokeniser"],
                       help=rare("nanotoken: a faster package, verified on a sample (cache)"))

    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR",
                       help="output folder for shards and manifest.json, or a URL (s3://...)")
    group.add_argument("--work-dir", metavar="DIR",
                       help=rare("with --out URL: local working folder (default: in $TMPDIR)"))
    group.add_argument("--validation-fraction", type=float, metavar="F",
                       help="fraction of documents to hold out (default: 0.005)")
    group.add_argument("--seed", type=int, metavar="N",
                       help="seed of order, split, pairs and masks (default: 12345)")
    group.add_argument("--shard-tokens", type=int, metavar="N",
                       help=rare("approximate number of tokens per shard (default: 4000000)"))
    group.add_argument("--min-tokens", type=int, metavar="N",
                       help=rare("drop documents with fewer than N tokens (default: 8)"))
    group.add_argument("--overwrite", action="store_true",
                       help="replace a preparation that was made with other settings")

    group = parser.add_argument_group("choice of documents (default: all, except exact duplicates)")
    group.add_argument("--dedup", choices=CHOICES["dedup"],
                       help="remove exact duplicates (default), or also near-duplicates")
    group.add_argument("--mix", metavar="SOURCE=W,...",
                       help="how often documents of a source are used: wiki=1,books=2.5")
    group.add_argument("--decontaminate", nargs="+", action="extend", metavar="FILE",
                       help="drop documents that contain text of these test sets")
    group.add_argument("--quality", nargs="+", action="extend", choices=QUALITY_RULES,
                       metavar="RULE", help="drop documents that fail the rules gopher, "
                                            "repetition or c4")
    group.add_argument("--keep-language", nargs="+", action="extend", metavar="CODE",
                       help="keep only these languages, such as en (requires py3langid)")
    group.add_argument("--min-words", type=int, metavar="N",
                       help=rare("drop documents with fewer than N words"))
    group.add_argument("--max-words", type=int, metavar="N",
                       help=rare("drop documents with more than N words"))
    group.add_argument("--keep-dropped", action="store_true",
                       help=rare("write dropped documents to OUT/dropped/REASON.jsonl"))
    group.add_argument("--language-score", type=float, metavar="P",
                       help=rare("minimum probability for --keep-language (default: 0.65)"))
    group.add_argument("--decontaminate-ngram", type=int, metavar="N",
                       help=rare("length of a match in words (13; shorter examples as a whole)"))
    group.add_argument("--minhash-bands", type=int, metavar="N",
                       help=rare("number of bands (default: 14)"))
    group.add_argument("--minhash-rows", type=int, metavar="N",
                       help=rare("number of hashes per band (default: 8)"))
    group.add_argument("--minhash-ngram", type=int, metavar="N",
                       help=rare("number of words that are hashed together (default: 5)"))

    group = parser.add_argument_group("NVIDIA HDF5 (for NeMo, DeepLearningExamples, bing_bert)")
    group.add_argument("--instances", action="append", metavar="S:P",
                       help="also write rows of S tokens with up to P masks, such as 128:20")
    group.add_argument("--dupe-factor", type=int, metavar="N",
                       help="number of passes, each with new masks (default: 5)")
    group.add_argument("--compression", choices=CHOICES["compression"],
                       help=rare("compression of these files (default: gzip)"))
    group.add_argument("--masked-lm-prob", type=float, metavar="P",
                       help=rare("fraction of tokens to mask (default: 0.15)"))
    group.add_argument("--short-seq-prob", type=float, metavar="P",
                       help=rare("probability of a shorter target length (default: 0.1)"))
    group.add_argument("--whole-word-masking", action="store_true",
                       help=rare("mask all pieces of a word together"))
    group.add_argument("--ngram", type=int, metavar="N",
                       help=rare("mask up to N consecutive words together (default: 1)"))
    group.add_argument("--pairs", choices=CHOICES["pairs"],
                       help=rare("next sentence (default), sentence order, or no pairs"))
    group.add_argument("--dataset-name", metavar="NAME",
                       help=rare("dataset name in these files (wikicorpus_en, bookscorpus, ...)"))

    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=int, metavar="N",
                       help="number of processes (default: all cores); affects only speed")
    group.add_argument("--executor", choices=EXECUTORS,
                       help="run locally (default), as a Slurm array job, or on Ray")
    group.add_argument("--task-count", type=int, metavar="N",
                       help="number of tasks, on hosts that share --out, for one corpus")
    group.add_argument("--task-index", type=int, metavar="K",
                       help=rare("with --executor local: run task K of them (from 0)"))
    group.add_argument("--dry-run", action="store_true",
                       help="estimate work, disk space and time from a sample, then exit")
    group.add_argument("--debug", action="store_true", help=rare("show the traceback of an error"))
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument("--help-all", action="store_true", help="also show the rarely used options")
    # fmt: on
    return parser
