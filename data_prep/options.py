"""The command line of preparation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertds.data.formats.nvidia_hdf5 import COMPRESSIONS
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import ConfigError
from bertds.system.atomic_files import sha256_file
from bertds.system.processes import usable_cores
from data_prep.document import Limits, SourceFile
from data_prep.filter_options import add_filter_options, minhash_settings
from data_prep.selection.filters import FilterSettings
from data_prep.selection.mixing import parse_mix
from data_prep.settings import InstanceRequest, PrepSettings
from data_prep.sources import SOURCE_KINDS, find_files, source_order
from data_prep.sources.hub import NAME_PREFIX, find_hub
from data_prep.sources.text import LAYOUTS
from data_prep.tokens.nanotoken_encoder import check_installed
from data_prep.wiki.templates import check_file

_LICENCES = {"wiki": "CC BY-SA (Wikipedia contributors)", "books": "as each book states"}

_EXAMPLES = """examples:
  %(prog)s --wiki enwiki-*.bz2 --books gutenberg/ --out data --vocab vocab.txt
  %(prog)s --text corpus.txt --out data --train-vocab 8192 \\
      --instances 128:20 --instances 512:80 --dupe-factor 5

Killed? Run the same command again. Look: DIR/report.html; rows: %(prog)s show DIR"""


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
        usage="%(prog)s --wiki|--books|--text|... PATH... --out DIR --vocab FILE [options]",
    )

    def rare(text: str) -> str:
        return text if full else argparse.SUPPRESS

    # fmt: off
    group = parser.add_argument_group("sources (files or folders; mix as you like)")
    paths: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "PATH"}
    group.add_argument("--wiki", **paths, help="MediaWiki dumps (.xml, .bz2), or <doc> files")
    group.add_argument("--books", **paths, help="folders of books as .txt (Project Gutenberg)")
    group.add_argument("--text", **paths, help="plain text, blank lines between documents")
    group.add_argument("--jsonl", **paths, help="JSON lines with a text in each")
    group.add_argument("--parquet", **paths, help="Parquet files with a text column")
    group.add_argument("--pubmed", **paths, help="BioASQ / PubMed JSON: address -> abstract")
    group.add_argument("--hf", **{**paths, "metavar": "NAME[:CONFIG]"},
                       help="Hugging Face datasets, or folders laid out as the Hub's")
    group.add_argument("--hf-split", default="train", metavar="SPLIT",
                       help=rare("the split of --hf (train)"))
    group.add_argument("--wiki-index", nargs="+", action="extend", default=[], metavar="FILE",
                       help=rare("indexes of multistream dumps (found if beside them)"))
    group.add_argument("--wiki-templates", metavar="FILE",
                       help=rare("YAML: templates whose words stay, as wiki/templates.yaml has"))
    group.add_argument("--text-layout", choices=LAYOUTS, default="blank-line",
                       help=rare("what separates the documents of --text (blank-line)"))
    group.add_argument("--text-key", default="text", metavar="KEY",
                       help=rare("the text's key in --jsonl, column in --parquet and --hf (text)"))
    group.add_argument("--licence", action="append", default=[], metavar="SOURCE=TEXT",
                       help=rare("a source's licence for the manifest"))
    group.add_argument("--max-document-mb", type=int, default=256, metavar="N",
                       help=rare("refuse a document of more than N MB (256)"))
    group.add_argument("--max-unpack-ratio", type=int, default=250, metavar="N",
                       help=rare("refuse a compressed file of more than N times its size (250)"))
    group.add_argument("--language", default="en", metavar="CODE",
                       help=rare("whose sentence rules to use (en)"))

    group = parser.add_argument_group("vocabulary (one of the first two)")
    group.add_argument("--vocab", metavar="FILE",
                       help="a vocab.txt, a tokenizer.json (BPE, unigram too), a folder with one")
    group.add_argument(
        "--train-vocab", type=int, default=0, metavar="N", help="train one of N tokens"
    )
    casing = group.add_mutually_exclusive_group()
    casing.add_argument("--uncased", dest="lower_case", action="store_true", default=None,
                        help="lower-case the text (default: as the vocabulary is)")
    casing.add_argument("--cased", dest="lower_case", action="store_false", help="keep its case")
    group.add_argument("--keep-accents", action="store_true",
                       help=rare("do not strip accents, lower-cased or not"))
    group.add_argument("--vocab-sample-bytes", type=int, default=100_000_000, metavar="N",
                       help=rare("text that --train-vocab reads (100000000)"))

    group.add_argument("--tokeniser", choices=("cache", "nanotoken"), default="cache",
                       help=rare("nanotoken: a faster package, compared on a sample (cache)"))

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

    add_filter_options(parser, rare)

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
    group.add_argument("--workers", type=int, default=0, metavar="N",
                       help="processes (all cores); changes nothing but the time")
    group.add_argument("--executor", choices=("local", "slurm", "ray"), default="local",
                       help="here (default), as a Slurm array job, or on a Ray cluster")
    group.add_argument("--task-count", type=int, default=1, metavar="N",
                       help="N tasks on any hosts that share --out prepare one corpus together")
    group.add_argument("--task-index", type=int, default=0, metavar="K",
                       help=rare("with --executor local: this process is task K of them (from 0)"))
    group.add_argument("--dry-run", action="store_true",
                       help="say from a sample how much work, disk and time lie ahead, and stop")
    group.add_argument("--debug", action="store_true", help=rare("show the traceback of an error"))
    group.add_argument("-h", "--help", action="help", help="show this and stop")
    group.add_argument("--help-all", action="store_true", help="show the rarely used options too")
    # fmt: on
    return parser


def worker_count(asked: int, files: Sequence[SourceFile]) -> int:
    """Return the number of processes: as asked, or all cores, but fewer for small sources."""
    if asked > 0:
        return asked
    # A process takes a second to start; below some megabytes it is not worth it.
    return max(1, min(usable_cores(), sum(file.bytes for file in files) // 4_000_000))


def source_files(args: argparse.Namespace) -> list[SourceFile]:
    """Return the input files, each looked into.

    Raises:
        UserError: there is none, or one is not what its option says.
    """
    options = {
        "text": (args.text_layout,),
        "jsonl": (args.text_key,),
        "parquet": (args.text_key,),
    }
    if args.wiki_templates:
        path = Path(args.wiki_templates).resolve()
        check_file(path)
        # With its hash: what was read with other contents is not used again.
        options["wiki"] = (f"templates={sha256_file(path)}:{path}",)
    limits = _limits(args)
    files = []
    for kind in SOURCE_KINDS:
        files += find_files(
            kind,
            getattr(args, kind, []),
            options.get(kind, ()),
            args.wiki_index if kind == "wiki" else (),
            limits,
        )
    for given in args.hf:
        found = find_hub(given, args.hf_split, args.text_key)
        files += [file._replace(limits=limits) for file in found]
    if not files:
        raise ConfigError(
            "no source: give --wiki, --books, --text, --jsonl, --parquet, --pubmed or --hf"
        )
    return files


def _limits(args: argparse.Namespace) -> Limits:
    for option, value in (
        ("--max-document-mb", args.max_document_mb),
        ("--max-unpack-ratio", args.max_unpack_ratio),
    ):
        if not 1 <= value <= 1_000_000:
            raise ConfigError(f"{option} {value}: allowed: 1 to 1000000")
    return Limits(args.max_document_mb << 20, args.max_unpack_ratio)


def prep_settings(
    args: argparse.Namespace, files: list[SourceFile], filters: FilterSettings | None = None
) -> PrepSettings:
    """Return the settings that decide the result, checked.

    Args:
        args: the options.
        files: the input files.
        filters: what is asked of documents.

    Raises:
        UserError: a value is impossible, or the vocabulary is not one of BERT's.
    """
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: allowed: 0 (all cores) or more")
    tokenizer = _asked_tokenizer(args)
    requests = [InstanceRequest.parse(text) for text in args.instances]
    if len({r.sequence_length for r in requests}) < len(requests):
        raise ConfigError("--instances: each sequence length only once")
    kinds = {file.source for file in files}
    names = {
        frozenset({"wiki"}): "wikicorpus_en",
        frozenset({"books"}): "bookscorpus",
        frozenset({"wiki", "books"}): "books_wiki_en_corpus",
    }
    dataset = args.dataset_name or names.get(frozenset(kinds), "corpus")
    if not dataset.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"--dataset-name {dataset!r}: letters, digits, _ and - only")
    return PrepSettings(
        seed=args.seed,
        **tokenizer,
        wiki_templates_sha256=sha256_file(Path(args.wiki_templates)) if args.wiki_templates else "",
        vocab_size=args.train_vocab,
        vocab_sample_bytes=args.vocab_sample_bytes if args.train_vocab else 100_000_000,
        language=args.language,
        min_tokens=args.min_tokens,
        shard_tokens=args.shard_tokens,
        validation_fraction=args.validation_fraction,
        dataset=dataset,
        instances=tuple(requests),
        dupe_factor=args.dupe_factor,
        masked_lm_prob=args.masked_lm_prob,
        short_seq_prob=args.short_seq_prob,
        whole_word_masking=args.whole_word_masking,
        ngram=args.ngram,
        pairs=args.pairs,
        compression=args.compression,
        filters=filters or FilterSettings(),
        dedup=args.dedup,
        minhash=minhash_settings(args),
        mix=parse_mix(args.mix, source_order(files)),
        tokeniser=args.tokeniser,
        keep_dropped=args.keep_dropped,
    )


def _asked_tokenizer(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that describe the tokenizer, given or to be trained."""
    strip_accents = False if args.keep_accents else None
    fast = args.tokeniser == "nanotoken"
    if fast:
        check_installed()
    if not args.vocab:
        lower_case = args.lower_case is not False
        unusual = args.keep_accents and lower_case
        return {"lower_case": lower_case, "strip_accents": False if unusual else None}
    tokenizer = load_tokenizer_info(args.vocab, args.lower_case, strip_accents)
    if not tokenizer.is_wordpiece and (args.instances or fast):
        option = "--tokeniser nanotoken" if fast else "--instances"
        raise ConfigError(
            f"{option} is for BERT's WordPiece ({'' if fast else 'NVIDIA HDF5 holds no other; '}"
            f"{args.vocab} is {tokenizer.model}): leave it out; the token shards serve any model"
        )
    same = tokenizer.fingerprint if not tokenizer.is_wordpiece else sha256_file(tokenizer.main_file)
    return {
        "lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "chinese_characters": tokenizer.chinese_characters,
        "tokenizer_model": tokenizer.model,
        "vocab_sha256": same,
    }


def source_licences(given: list[str], files: Sequence[SourceFile]) -> dict[str, str]:
    """Return the licence of each source: from ``SOURCE=TEXT``, else its own word, else known.

    ``hf=TEXT`` is said of all datasets of ``--hf``.
    """
    licences = dict(_LICENCES)
    licences.update({file.source: file.licence for file in files if file.licence})
    names = {file.source for file in files}
    allowed = [*SOURCE_KINDS, "hf", *sorted(names.difference(SOURCE_KINDS))]
    for text in given:
        # A licence may hold "=", a source's name does not.
        source, equals, licence = text.partition("=")
        if not equals or source not in allowed:
            raise ConfigError(
                f"--licence {text}: expected SOURCE=TEXT, SOURCE one of {', '.join(allowed)}"
            )
        if source == "hf":
            licences.update({n: licence for n in names if n.startswith(NAME_PREFIX)})
        licences[source] = licence
    return licences
