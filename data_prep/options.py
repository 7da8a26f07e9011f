"""The command line of preparation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from bertds.data.hdf5 import COMPRESSIONS
from data_prep.sources.text import LAYOUTS

_EXAMPLES = """examples:
  build_wiki_books.py --wiki enwiki-*.bz2 --books gutenberg/ --out data --vocab vocab.txt
  build_wiki_books.py --text corpus.txt --out data --train-vocab 8192 \\
      --instances 128:20 --instances 512:80 --dupe-factor 5

Killed? Run the same command again: it goes on from there, and the result is the same."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments (None = the command line's)."""
    parser = _parser(full=False)
    args = parser.parse_args(argv)
    if args.help_all:
        _parser(full=True).print_help()
        raise SystemExit(0)
    if not args.out:
        parser.error("--out DIR is missing")
    if bool(args.vocab) == bool(args.train_vocab):
        parser.error("give either --vocab FILE or --train-vocab N")
    return args


def _parser(full: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_wiki_books.py",
        description="Turn corpora into training shards: clean text, sentences, tokens.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --wiki|--books|--text|... PATH... --out DIR --vocab FILE [options]",
    )

    def rare(text: str) -> str:
        return text if full else argparse.SUPPRESS

    # fmt: off
    group = parser.add_argument_group("sources (files or folders; mix as you like)")
    paths = {"nargs": "+", "action": "extend", "default": [], "metavar": "PATH"}
    group.add_argument("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    group.add_argument("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    group.add_argument("--text", **paths, help="plain text, blank lines between documents")
    group.add_argument("--jsonl", **paths, help="JSON lines with a text in each (.gz, .zst too)")
    group.add_argument("--parquet", **paths, help="Parquet files with a text column")
    group.add_argument("--pubmed", **paths, help="BioASQ / PubMed JSON: address -> abstract")
    group.add_argument("--text-layout", choices=LAYOUTS, default="blank-line",
                       help=rare("what separates the documents of --text (blank-line)"))
    group.add_argument("--text-key", default="text", metavar="KEY",
                       help=rare("the text's key in --jsonl, column in --parquet (text)"))
    group.add_argument("--licence", action="append", default=[], metavar="SOURCE=TEXT",
                       help=rare("a source's licence for the manifest"))
    group.add_argument("--language", default="en", metavar="CODE",
                       help=rare("whose sentence rules to use (en)"))

    group = parser.add_argument_group("vocabulary (one of the first two)")
    group.add_argument("--vocab", metavar="FILE", help="a vocab.txt")
    group.add_argument(
        "--train-vocab", type=int, default=0, metavar="N", help="train one of N tokens"
    )
    casing = group.add_mutually_exclusive_group()
    casing.add_argument("--uncased", dest="lower_case", action="store_true", default=None,
                        help="lower-case the text (default: as the vocabulary is)")
    casing.add_argument("--cased", dest="lower_case", action="store_false", help="keep its case")
    group.add_argument("--vocab-sample-bytes", type=int, default=100_000_000, metavar="N",
                       help=rare("text that --train-vocab reads (100000000)"))

    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="where shards and manifest.json go")
    group.add_argument("--validation-fraction", type=float, default=0.005, metavar="F",
                       help="share of documents held out (0.005)")
    group.add_argument("--seed", type=int, default=12345, metavar="N", help="(12345)")
    group.add_argument("--shard-tokens", type=int, default=4_000_000, metavar="N",
                       help=rare("tokens of a shard, about (4000000)"))
    group.add_argument("--min-tokens", type=int, default=8, metavar="N",
                       help=rare("drop documents with fewer tokens (8)"))
    group.add_argument("--overwrite", action="store_true",
                       help="begin anew in a folder that was prepared with other settings")

    group = parser.add_argument_group("NVIDIA HDF5 (for NeMo, DeepLearningExamples, bing_bert)")
    group.add_argument("--instances", action="append", default=[], metavar="S:P",
                       help="also write rows of S tokens with P masks, e.g. 128:20")
    group.add_argument("--dupe-factor", type=int, default=5, metavar="N", help="passes (5)")
    group.add_argument("--compression", choices=COMPRESSIONS, default="gzip",
                       help=rare("of these files (gzip)"))
    group.add_argument(
        "--masked-lm-prob", type=float, default=0.15, metavar="P", help=rare("(0.15)")
    )
    group.add_argument("--short-seq-prob", type=float, default=0.1, metavar="P", help=rare("(0.1)"))
    group.add_argument("--whole-word-masking", action="store_true",
                       help=rare("mask all pieces of a word together"))
    group.add_argument("--ngram", type=int, default=1, metavar="N",
                       help=rare("mask runs of up to N words (1)"))
    group.add_argument("--pairs", choices=("nsp", "sop", "none"), default="nsp",
                       help=rare("next sentence, sentence order, or no pairs (nsp)"))
    group.add_argument("--dataset-name", metavar="NAME",
                       help=rare("of these files (wikicorpus_en, bookscorpus, ...)"))

    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=int, default=_cores(), metavar="N",
                       help="processes (all cores); changes nothing but the time")
    group.add_argument("--debug", action="store_true", help=rare("show the traceback of an error"))
    group.add_argument("--help-all", action="store_true", help="show the rarely used options too")
    # fmt: on
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
