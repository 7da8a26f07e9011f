"""The options of preparation and the text of its ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bertds.errors import ConfigError
from bertds.system.arguments import CommandParser
from bertds.system.option_types import finite
from data_prep.request import CHOICES, REMOVED_OPTIONS
from data_prep.selection.filters import QUALITY_RULES

EXECUTORS = ("local", "slurm", "ray")

_EXAMPLES = """examples:
  %(prog)s --wiki enwiki-*.bz2 --books gutenberg/ --out data --vocab vocab.txt
  %(prog)s --text corpus.txt --out data --train-vocab 8192 \\
      --instances 128:20 --instances 512:80 --dupe-factor 5

Resume: run the same command again. Report: DIR/report.html. Rows: %(prog)s show DIR"""


class _OneLineEach(argparse.RawDescriptionHelpFormatter):
    """Prints each option and its help on one line, so that all fit on a screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return text.split(" [")[0] + " ..." if action.nargs == "+" else text


class _Removed(argparse.Action):
    """An option of an earlier version: refused with the reason, whatever its value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        option = self.option_strings[0]
        raise ConfigError(f"{option} was removed: {REMOVED_OPTIONS[self.dest]}")


def _program() -> str:
    """Return the name of the program: the script's name, or ``bertds prep``."""
    script = Path(sys.argv[0]).name
    return script if script == "build_wiki_books.py" else "bertds prep"


_WHOLE: dict[str, Any] = {"type": int, "metavar": "N"}
_SHARE: dict[str, Any] = {"type": finite, "metavar": "P"}
_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}

Group = argparse._ArgumentGroup
Rare = Callable[[str], str]
"""Makes an option's help: its text, or nothing where only common options are shown."""


def _shown(text: str) -> str:
    return text


def _hidden(text: str) -> str:
    return argparse.SUPPRESS


def option_parser(full: bool) -> argparse.ArgumentParser:
    """Return the parser; its ``--help`` shows the rarely used options only if ``full``."""
    parser = CommandParser(
        prog=_program(),
        description="Turn corpora into training shards: clean text, sentences, tokens.",
        epilog=_EXAMPLES,
        formatter_class=_OneLineEach,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s --wiki|--books|--text|... PATH... --out DIR --vocab FILE [options]",
    )
    rare, section = _shown if full else _hidden, parser.add_argument_group
    _add_sources(section("sources (files or folders, in any combination)"), rare)
    _add_vocabulary(section("vocabulary (--vocab or --train-vocab is required)"), rare)
    _add_output(section("output"), rare)
    _add_selection(section("choice of documents (default: all, except exact duplicates)"), rare)
    _add_nvidia_files(section("NVIDIA HDF5 (for NeMo, DeepLearningExamples, bing_bert)"), rare)
    _add_running(section("running"), rare)
    for name in REMOVED_OPTIONS:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, nargs="?", action=_Removed, help=argparse.SUPPRESS)
    return parser


def _add_sources(group: Group, rare: Rare) -> None:
    add = group.add_argument
    paths = {**_SEVERAL, "metavar": "PATH"}
    add("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    add("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    add("--text", **paths, help="plain text, blank lines between documents")
    add("--jsonl", **paths, help="JSON Lines files with one text per object")
    add("--parquet", **paths, help="Parquet files with a text column")
    add("--pubmed", **paths, help="BioASQ / PubMed JSON: URL -> abstract")
    add(
        "--hf",
        **_SEVERAL,
        metavar="NAME[:CONFIG]",
        help="Hugging Face datasets, by name or as local folders",
    )
    add("--hf-split", metavar="SPLIT", help=rare("split of --hf to read (default: train)"))
    add(
        "--wiki-index",
        **_SEVERAL,
        metavar="FILE",
        help=rare("indexes of multistream dumps (default: those next to the dumps)"),
    )
    add(
        "--wiki-templates",
        metavar="FILE",
        help=rare("YAML file of templates to keep as text, like wiki/templates.yaml"),
    )
    add(
        "--text-layout",
        choices=CHOICES["text_layout"],
        help=rare("what separates the documents of --text (default: blank-line)"),
    )
    add(
        "--text-key",
        metavar="KEY",
        help=rare("JSON key or column that has the text (default: text)"),
    )
    add(
        "--licence",
        action="append",
        metavar="SOURCE=TEXT",
        help=rare("licence of a source, recorded in the manifest"),
    )
    add(
        "--max-document-mb", **_WHOLE, help=rare("refuse documents larger than N MB (default: 256)")
    )
    add(
        "--max-unpack-ratio",
        **_WHOLE,
        help=rare("refuse files that unpack to over N times their size (default: 250)"),
    )
    add("--language", metavar="CODE", help=rare("language of the sentence splitter (default: en)"))


def _add_vocabulary(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--vocab",
        metavar="FILE",
        help="vocab.txt, tokenizer.json (also BPE), a folder or a model name",
    )
    add("--train-vocab", **_WHOLE, help="train a vocabulary of N tokens")
    casing = group.add_mutually_exclusive_group()
    casing.add_argument(
        "--uncased",
        dest="lower_case",
        action="store_true",
        help="lower-case the text (default: as in the vocabulary)",
    )
    casing.add_argument(
        "--cased", dest="lower_case", action="store_false", help="keep the case of the text"
    )
    add(
        "--keep-accents",
        action="store_true",
        help=rare("do not strip accents, even from lower-cased text"),
    )
    add(
        "--vocab-sample-bytes",
        **_WHOLE,
        help=rare("bytes of text that --train-vocab reads (default: 100000000)"),
    )


def _add_output(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--out",
        metavar="DIR",
        help="output folder for shards and manifest.json, or a URL (s3://...)",
    )
    add(
        "--work-dir",
        metavar="DIR",
        help=rare("with --out URL: local working folder (default: in $TMPDIR)"),
    )
    add(
        "--validation-fraction",
        **{**_SHARE, "metavar": "F"},
        help="fraction of documents to hold out (default: 0.005)",
    )
    add("--seed", **_WHOLE, help="seed of order, split, pairs and masks (default: 12345)")
    add(
        "--shard-tokens",
        **_WHOLE,
        help=rare("approximate number of tokens per shard (default: 4000000)"),
    )
    add("--min-tokens", **_WHOLE, help=rare("drop documents with fewer than N tokens (default: 8)"))
    add(
        "--overwrite",
        action="store_true",
        help="replace a preparation that was made with other settings",
    )


def _add_selection(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--dedup",
        choices=CHOICES["dedup"],
        help="remove exact duplicates (default), or also near-duplicates",
    )
    add(
        "--mix",
        metavar="SOURCE=W,...",
        help="how often to use the documents of a source: wiki=1,books=2.5",
    )
    add(
        "--decontaminate",
        **_SEVERAL,
        metavar="FILE",
        help="drop documents that contain text from these test sets",
    )
    add(
        "--quality",
        **_SEVERAL,
        choices=QUALITY_RULES,
        metavar="RULE",
        help="drop documents that fail these rule sets: gopher, repetition, c4",
    )
    add(
        "--keep-language",
        **_SEVERAL,
        metavar="CODE",
        help="keep only these languages, such as en (requires py3langid)",
    )
    add("--min-words", **_WHOLE, help=rare("drop documents with fewer than N words"))
    add("--max-words", **_WHOLE, help=rare("drop documents with more than N words"))
    add(
        "--keep-dropped",
        action="store_true",
        help=rare("write dropped documents to OUT/dropped/REASON.jsonl"),
    )
    add(
        "--language-score",
        **_SHARE,
        help=rare("minimum probability for --keep-language (default: 0.65)"),
    )
    add("--decontaminate-ngram", **_WHOLE, help=rare("length of a match in words (default: 13)"))
    add("--minhash-bands", **_WHOLE, help=rare("number of LSH bands (default: 14)"))
    add("--minhash-rows", **_WHOLE, help=rare("number of hashes per band (default: 8)"))
    add(
        "--minhash-ngram",
        **_WHOLE,
        help=rare("number of words that are hashed together (default: 5)"),
    )


def _add_nvidia_files(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add(
        "--instances",
        action="append",
        metavar="S:P",
        help="also write rows of S tokens with up to P masks, such as 128:20",
    )
    add(
        "--dupe-factor",
        **_WHOLE,
        help="number of passes over the corpus, each with new masks (default: 5)",
    )
    add(
        "--compression",
        choices=CHOICES["compression"],
        help=rare("compression of these files (default: gzip)"),
    )
    add("--masked-lm-prob", **_SHARE, help=rare("fraction of tokens to mask (default: 0.15)"))
    add(
        "--short-seq-prob",
        **_SHARE,
        help=rare("probability of a shorter target length (default: 0.1)"),
    )
    add(
        "--whole-word-masking", action="store_true", help=rare("mask all pieces of a word together")
    )
    add("--ngram", **_WHOLE, help=rare("mask up to N consecutive words together (default: 1)"))
    add(
        "--pairs",
        choices=CHOICES["pairs"],
        help=rare("next sentence (default), sentence order, or no pairs"),
    )
    add(
        "--dataset-name",
        metavar="NAME",
        help=rare("dataset name in these files (wikicorpus_en, bookscorpus, ...)"),
    )


def _add_running(group: Group, rare: Rare) -> None:
    add = group.add_argument
    add("--workers", **_WHOLE, help="number of processes (default: all cores); affects only speed")
    add(
        "--executor",
        choices=EXECUTORS,
        help="run locally (default), as a Slurm array job, or on Ray",
    )
    add(
        "--task-count",
        **_WHOLE,
        help="number of tasks that prepare this corpus, on hosts that share --out",
    )
    add(
        "--task-index",
        type=int,
        metavar="K",
        help=rare("with --executor local: the task to run (0 to --task-count - 1)"),
    )
    add(
        "--dry-run",
        action="store_true",
        help="estimate work, disk space and time from a sample, then exit",
    )
    add("--debug", action="store_true", help=rare("show the traceback of an error"))
    add("-h", "--help", action="help", help="show this help and exit")
    add("--help-all", action="store_true", help="also show the rarely used options")
