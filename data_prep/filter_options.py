"""The options that choose documents: duplicates, quality, language, test files, weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from data_prep.selection.decontaminate import NgramTable, TestFile, check_ngram, read_test_files
from data_prep.selection.filters import QUALITY_RULES, FilterSettings
from data_prep.selection.minhash import MinHashSettings
from data_prep.settings import DEDUP


def add_filter_options(parser: argparse.ArgumentParser, rare: Callable[[str], str]) -> None:
    """Add the options; ``rare`` hides the help of those that are seldom needed."""
    # fmt: off
    group = parser.add_argument_group("which documents (all but equal ones, unless asked)")
    group.add_argument("--dedup", choices=DEDUP, default="exact",
                       help="equal texts enter once (exact), or near-duplicates too (minhash)")
    group.add_argument("--mix", default="", metavar="SOURCE=W,...",
                       help="how often a source's documents enter, e.g. wiki=1,books=2.5")
    group.add_argument("--decontaminate", nargs="+", action="extend", default=[], metavar="FILE",
                       help="drop documents that hold text of these test sets")
    group.add_argument("--quality", nargs="+", action="extend", default=[], choices=QUALITY_RULES,
                       metavar="RULE", help="drop what gopher, repetition or c4 calls no prose")
    group.add_argument("--keep-language", nargs="+", action="extend", default=[], metavar="CODE",
                       help="drop documents in other languages, e.g. en (needs py3langid)")
    group.add_argument("--min-words", type=int, default=0, metavar="N",
                       help=rare("drop documents with fewer words"))
    group.add_argument("--max-words", type=int, default=0, metavar="N",
                       help=rare("drop documents with more words"))
    group.add_argument("--keep-dropped", action="store_true",
                       help=rare("write what was left out to OUT/dropped/REASON.jsonl"))
    group.add_argument("--language-score", type=float, default=0.65, metavar="P",
                       help=rare("least probability of --keep-language (0.65)"))
    group.add_argument("--decontaminate-ngram", type=int, default=13, metavar="N",
                       help=rare("words that must agree (13; an example of 8 to N as a whole)"))
    group.add_argument("--minhash-bands", type=int, default=14, metavar="N", help=rare("(14)"))
    group.add_argument("--minhash-rows", type=int, default=8, metavar="N",
                       help=rare("hashes of a band (8)"))
    group.add_argument("--minhash-ngram", type=int, default=5, metavar="N",
                       help=rare("words that are hashed together (5)"))
    # fmt: on


def filter_settings(args: argparse.Namespace) -> tuple[FilterSettings, NgramTable | None]:
    """Return what is asked of documents, and the n-grams of the test files.

    Raises:
        UserError: a value is impossible, a test file cannot be read, a package is missing.
    """
    table = None
    files: tuple[TestFile, ...] = ()
    if args.decontaminate:
        check_ngram(args.decontaminate_ngram)
        files, table = read_test_files(args.decontaminate, args.decontaminate_ngram)
    if args.keep_language:
        from data_prep.selection.language import check_languages

        check_languages(args.keep_language)
    settings = FilterSettings(
        min_words=args.min_words,
        max_words=args.max_words,
        languages=tuple(sorted(set(args.keep_language))),
        language_score=args.language_score if args.keep_language else 0.65,
        quality=tuple(dict.fromkeys(args.quality)),
        test_files=files,
        test_ngram=args.decontaminate_ngram if args.decontaminate else 13,
    )
    return settings, table


def minhash_settings(args: argparse.Namespace) -> MinHashSettings:
    """Return how near-duplicates are found, checked."""
    if args.dedup != "minhash":
        return MinHashSettings()
    return MinHashSettings(
        bands=args.minhash_bands, rows=args.minhash_rows, ngram=args.minhash_ngram
    )
