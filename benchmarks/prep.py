"""Preparation stage by stage, compared with the raw speed of ``tokenizers``.

    python benchmarks/prep.py --dump DUMP.bz2 --wiki EXTRACTED --books DIR --vocab vocab.txt
    python benchmarks/prep.py --nvidia DIR --wiki EXTRACTED --books DIR --vocab vocab.txt
    python benchmarks/prep.py    # some MB of made-up text

All numbers are per CPU-second of one process, because the machine may be shared, and the best of
the repetitions. Compiled code is loaded beforehand. ``--nvidia`` takes the folder of
create_pretraining_data.py from NVIDIA DeepLearningExamples. It runs our preparation and theirs
alternately on the same text instead; see prep_paired.py. ``--json FILE`` keeps the result.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.common import (
    PREPARATION_PACKAGES,
    add_result_options,
    footer,
    host_facts,
    versions_in,
    write_result,
)
from benchmarks.made_up import write_corpus
from benchmarks.prep_paired import paired
from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary import load_tokenizer_info
from bertds.data.vocabulary_file import read_vocabulary
from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from data_prep import progress
from data_prep.build_wiki_books import main as prepare
from data_prep.sources import READERS, file_units, find_files
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.wikipedia import page_batches, page_document
from data_prep.tokens.sentences import sentence_splitter
from data_prep.tokens.wordpiece import WordPieceEncoder
from data_prep.wiki.names import site


def cpu_seconds(work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Return the least CPU time of several calls, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return best, result


def dump_rows(dump: Path, repeat: int) -> list[dict[str, Any]]:
    """Measure the way from a dump to clean text."""
    xml = sum(len(block) for block, _ in whole_blocks(dump)) / 1e6
    unpack, _ = cpu_seconds(lambda: sum(len(b) for b, _ in whole_blocks(dump)), repeat)
    cut, batches = cpu_seconds(lambda: list(page_batches(dump, 1 << 22)), repeat)
    pages = [page for batch in batches for page in batch]
    wiki = site()
    clean, documents = cpu_seconds(lambda: [page_document(page, wiki) for page in pages], repeat)
    kept = sum(len(d.text.encode()) for d in documents)
    print(f"{len(pages)} pages, {xml:.1f} MB XML -> {kept / 1e6:.1f} MB text")
    stages = {"decompress": unpack, "decompress + pages": cut, "pages -> clean text": clean}
    return [
        {"stage": stage, "input": "MB XML", "mb": xml, "seconds": seconds}
        for stage, seconds in stages.items()
    ]


def text_rows(
    wiki: Sequence[str], books: Sequence[str], vocab: Path, repeat: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure reading, sentences and tokenizing; return the documents too."""
    files = find_files("wiki", wiki, ()) + find_files("books", books, ())

    def read() -> list[str]:
        units = [unit for file in files for unit in file_units(file, 32 << 20)]
        return [d.text for unit in units for d in READERS[unit.reader](unit) if d.text]

    seconds, documents = cpu_seconds(read, repeat)
    text = sum(len(d.encode()) for d in documents) / 1e6
    rows = [{"stage": "read and clean", "mb": text, "seconds": seconds}]
    split = sentence_splitter("en")
    seconds, sentences = cpu_seconds(lambda: [s for d in documents for s in split(d)], repeat)
    rows.append({"stage": "sentences", "mb": text, "seconds": seconds})

    info = load_tokenizer_info(vocab)
    tokens = read_vocabulary(vocab)
    WordPieceEncoder(tokens, info.lower_case).encode(sentences[:1000])  # compiled before it counts
    seconds, encoder = cpu_seconds(
        lambda: (e := WordPieceEncoder(tokens, info.lower_case), e.encode(sentences))[0], repeat
    )
    rows.append({"stage": "tokenize, cold cache", "mb": text, "seconds": seconds})
    seconds, (ids, _) = cpu_seconds(lambda: encoder.encode(sentences), repeat)
    rows.append({"stage": "tokenize, warm cache", "mb": text, "seconds": seconds})
    sample = sentences[: max(1, len(sentences) // 4)]
    theirs = wordpiece_pipeline({t: i for i, t in enumerate(tokens)}, info.lower_case)
    size = sum(len(s.encode()) for s in sample) / 1e6
    seconds, encoded = cpu_seconds(
        lambda: theirs.encode_batch_fast(sample, add_special_tokens=False), 1
    )
    flat = [i for one in encoded for i in one.ids]
    equal = ids[: len(flat)].tolist() == flat
    rows.append({"stage": "(tokenizers alone)", "mb": size, "seconds": seconds, "ids_equal": equal})
    return rows, documents


def end_to_end_rows(
    sources: Sequence[str], vocab: Path, instances: str, documents: Sequence[str]
) -> Any:
    """Measure the whole process from files to shards and to rows, in this process."""
    common = ["--vocab", str(vocab), "--workers", "1", "--validation-fraction", "0.01"]
    more = ["--instances", instances, "--compression", "none"]
    text = sum(len(d.encode()) for d in documents) / 1e6
    with tempfile.TemporaryDirectory() as name, progress.silence():
        folder = Path(name)
        warm = folder / "warm.txt"
        warm.write_text("\n\n".join(documents[:100]) + "\n", "utf-8")
        # Compiled before it counts.
        prepare(["--text", str(warm), *common, *more, "--out", str(folder / "warm")])
        shards, _ = cpu_seconds(
            lambda: prepare([*sources, *common, "--out", str(folder / "shards")]), 1
        )
        out = folder / "rows"
        both, _ = cpu_seconds(lambda: prepare([*sources, *common, *more, "--out", str(out)]), 1)
        count = sum(f["rows"] for f in Manifest.load(out).instances[0]["files"])
    rows: list[dict[str, Any]] = [
        {"stage": "end to end to token shards", "mb": text, "seconds": shards},
        {"stage": f"end to end to rows {instances}", "mb": text, "seconds": both},
    ]
    if both > shards:  # else too little text to measure
        rows.append({"stage": f"rows alone {instances}", "rows": count, "seconds": both - shards})
    return rows


def stages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the given sources allow."""
    rows = dump_rows(args.dump, args.repeat) if args.dump else []
    if args.wiki or args.books:
        more, documents = text_rows(args.wiki, args.books, args.vocab, args.repeat)
        sources = ["--wiki", *args.wiki] if args.wiki else []
        sources += ["--books", *args.books] if args.books else []
        rows += more + end_to_end_rows(sources, args.vocab, args.instances, documents)
    for row in rows:
        amount = "rows" if "rows" in row else "mb"
        row[f"{amount}_per_second"] = row[amount] / max(row["seconds"], 1e-9)
    return rows


def show_stages(result: dict[str, Any]) -> None:
    """Print the table of the stages."""
    print(f"{'stage':<30}{'per CPU-second':>16}{'of':>15}{'CPU-s':>9}")
    for row in result["stages"]:
        if "rows" in row:
            speed, amount = f"{row['rows_per_second']:,.0f} rows", f"{row['rows']:,} rows"
        else:
            unit = row.get("input", "MB")
            speed, amount = f"{row['mb_per_second']:.1f} {unit}", f"{row['mb']:.1f} {unit}"
        print(f"{row['stage']:<30}{speed:>16}{amount:>15}{row['seconds']:9.2f}")
        if "ids_equal" in row:
            print(f"  ids equal to ours: {'yes' if row['ids_equal'] else 'NO'}")
    print(f"{result['data']}; {footer(result)}")


def show_ratios(result: dict[str, Any]) -> None:
    """Print the table of ours compared with NVIDIA's."""
    print(f"{'':<40}{'MB':>8}{'CPU-s':>16}{'MB/CPU-s':>10}{'times':>7}")
    for row in result["stages"]:
        print(f"{row['stage']} (NVIDIA: {row['nvidia_stage']})")
        print(
            f"{'  NVIDIA':<40}{row['mb']:8.1f}{row['nvidia_seconds']:16.1f}"
            f"{row['nvidia_mb_per_second']:10.2f}{1:7.1f}"
        )
        seconds = " / ".join(f"{s:.1f}" for s in row["seconds"])
        print(
            f"{'  ours':<40}{row['mb']:8.1f}{seconds:>16}"
            f"{row['mb_per_second']:10.2f}{row['ratio']:7.1f}"
        )
    print(footer(result))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line and refuse what does not go together."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dump", type=Path, help="a MediaWiki dump")
    parser.add_argument("--wiki", nargs="*", default=[], help="folders of extracted articles")
    parser.add_argument("--books", nargs="*", default=[], help="folders of books")
    parser.add_argument("--vocab", type=Path, help="a vocab.txt, needed for the stages after text")
    parser.add_argument(
        "--megabytes", type=float, default=4.0, help="MB of made-up text if there is no source (4)"
    )
    parser.add_argument(
        "--instances", default="128:20", help="LENGTH:PREDICTIONS of the rows (128:20)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--nvidia", type=Path, help="folder of create_pretraining_data.py")
    parser.add_argument(
        "--nvidia-python",
        default=sys.executable,
        help="Python with nltk and h5py (default: this one)",
    )
    parser.add_argument("--share", type=int, default=1, help="--nvidia: take every N-th file (1)")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=["shards", "rows"],
        choices=("shards", "rows"),
        help="--nvidia: stages to compare (both)",
    )
    add_result_options(parser)
    args = parser.parse_args(argv)
    if args.nvidia and not (args.vocab and (args.wiki or args.books)):
        parser.error("--nvidia needs --vocab, and --wiki or --books")
    if (args.wiki or args.books) and not args.vocab:
        parser.error("--vocab is needed for the stages after text")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parse_args(argv)
    result = host_facts("prep.py", argv, args.note, PREPARATION_PACKAGES)
    if args.nvidia:
        result["versions"] |= versions_in(args.nvidia_python, ("nltk",))
        result["stages"] = paired(
            args.wiki,
            args.books,
            args.vocab,
            args.nvidia,
            args.nvidia_python,
            args.share,
            args.stages,
        )
        show_ratios(result)
    else:
        result["data"] = "given text"
        with tempfile.TemporaryDirectory() as folder:
            if not (args.dump or args.wiki or args.books):
                result["data"] = "made-up text"
                articles, vocab = write_corpus(Path(folder), args.megabytes)
                args.wiki, args.vocab = [str(articles)], args.vocab or vocab
            result["stages"] = stages(args)
        show_stages(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
