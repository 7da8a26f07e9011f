"""Preparation stage by stage, beside the raw speed of ``tokenizers``: a yardstick everyone has.

    python benchmarks/prep.py --dump DUMP.bz2 --wiki EXTRACTED --books DIR --vocab vocab.txt
    python benchmarks/prep.py --nvidia DIR --wiki EXTRACTED --books DIR --vocab vocab.txt

All numbers are per CPU-second of one process (the machine may be shared), best of the repetitions.
With ``--nvidia`` (the folder of NVIDIA DeepLearningExamples' create_pretraining_data.py) ours and
theirs are run in turn on the same text instead; see prep_paired.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.common import cpu_name
from benchmarks.prep_paired import paired
from bertds.data.manifest import Manifest
from bertds.data.vocabulary import load_tokenizer_info, read_vocabulary
from data_prep.build_wiki_books import main as prepare
from data_prep.sentences import sentence_splitter
from data_prep.sources import READERS, find_files
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.wikipedia import page_batches, page_document
from data_prep.wordpiece import WordPieceEncoder, huggingface_tokenizer


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
    xml = sum(len(block) for block, _ in whole_blocks(dump))
    rows = []
    seconds, _ = cpu_seconds(lambda: sum(len(b) for b, _ in whole_blocks(dump)), repeat)
    rows.append({"stage": "decompress", "input": "MB XML", "mb": xml / 1e6, "seconds": seconds})
    seconds, batches = cpu_seconds(lambda: list(page_batches(dump, 1 << 22)), repeat)
    rows.append({"stage": "decompress + pages", "mb": xml / 1e6, "seconds": seconds})
    pages = [page for batch in batches for page in batch]
    seconds, documents = cpu_seconds(
        lambda: [page_document(page, frozenset()) for page in pages], repeat
    )
    kept = sum(len(d.text.encode()) for d in documents)
    rows.append({"stage": "pages -> clean text", "mb": xml / 1e6, "seconds": seconds})
    print(
        f"{len(pages)} pages, {xml / 1e6:.1f} MB XML -> {kept / 1e6:.1f} MB text", file=sys.stderr
    )
    return rows


def text_rows(
    wiki: Sequence[str], books: Sequence[str], vocab: Path, repeat: int, instances: str
) -> list[dict[str, Any]]:
    """Measure the way from text to shards and rows."""
    files = find_files("wiki", wiki, ()) + find_files("books", books, ())
    from data_prep.sources import file_units

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
    rows.append({"stage": "tokenise, cold cache", "mb": text, "seconds": seconds})
    seconds, (ids, _) = cpu_seconds(lambda: encoder.encode(sentences), repeat)
    rows.append({"stage": "tokenise, warm cache", "mb": text, "seconds": seconds})
    sample = sentences[: len(sentences) // 4]
    theirs = huggingface_tokenizer({t: i for i, t in enumerate(tokens)}, info.lower_case)
    size = sum(len(s.encode()) for s in sample) / 1e6
    seconds, encoded = cpu_seconds(
        lambda: theirs.encode_batch_fast(sample, add_special_tokens=False), 1
    )
    rows.append({"stage": "(tokenizers alone)", "mb": size, "seconds": seconds})
    flat = [i for one in encoded for i in one.ids]
    print(f"ids equal to tokenizers': {ids[: len(flat)].tolist() == flat}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        sources = (["--wiki", *wiki] if wiki else []) + (["--books", *books] if books else [])
        common = [
            *sources,
            "--vocab",
            str(vocab),
            "--workers",
            "1",
            "--validation-fraction",
            "0.01",
        ]
        seconds, _ = cpu_seconds(lambda: prepare([*common, "--out", f"{folder}/shards"]), 1)
        rows.append({"stage": "whole road to token shards", "mb": text, "seconds": seconds})
        more = ["--instances", instances, "--compression", "none"]
        out = Path(folder) / "rows"
        seconds, _ = cpu_seconds(lambda: prepare([*common, *more, "--out", str(out)]), 1)
        rows.append({"stage": f"whole road to rows {instances}", "mb": text, "seconds": seconds})
        count = sum(f["rows"] for f in Manifest.load(out).instances[0]["files"])
        before = rows[-2]["seconds"]
        rows.append(
            {"stage": f"rows alone {instances}", "rows": count, "seconds": seconds - before}
        )
    return rows


def this_machine() -> dict[str, Any]:
    """Return processor, cores and versions."""
    packages = ["numpy", "numba", "tokenizers", "sentencex", "h5py"]
    packages += ["nanotoken"] if find_spec("nanotoken") else []
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def facts(note: str) -> dict[str, Any]:
    """Return what else a result must carry."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/prep.py", *sys.argv[1:]]),
        "load_average": round(os.getloadavg()[0], 1),
        "note": note,
    }


def compare(args: argparse.Namespace) -> int:
    """Run ours and NVIDIA's in turn, and print a table or JSON."""
    results = paired(
        args.wiki, args.books, args.vocab, args.nvidia, args.nvidia_python, args.share, args.stages
    )
    if args.json:
        result = {**facts(args.note), "machine": this_machine(), "stages": results}
        print(json.dumps(result, indent=2))
        return 0
    for row in results:
        print(
            f"{row['stage']}: {row['mb']:.1f} MB. NVIDIA ({row['nvidia_stage']}) "
            f"{row['nvidia_seconds']:.1f} CPU-s = {row['nvidia_mb_per_second']:.2f} MB/s"
        )
        for tokeniser, own in row["ours"].items():
            seconds = " / ".join(f"{s:.1f}" for s in own["seconds"])
            print(
                f"  ours, --tokeniser {tokeniser}: {seconds} CPU-s = {own['mb_per_second']:.2f} "
                f"MB/s, {own['ratio']:.1f} times"
            )
    return 0


def main() -> int:
    """Run, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dump", type=Path, help="a MediaWiki dump")
    parser.add_argument("--wiki", nargs="*", default=[], help="folders of extracted articles")
    parser.add_argument("--books", nargs="*", default=[], help="folders of books")
    parser.add_argument("--vocab", type=Path, help="a vocab.txt (for the stages after text)")
    parser.add_argument("--instances", default="128:20", help="rows to make (128:20)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--nvidia", type=Path, help="folder of create_pretraining_data.py")
    parser.add_argument(
        "--nvidia-python", default=sys.executable, help="interpreter that has nltk and h5py (this)"
    )
    parser.add_argument("--share", type=int, default=1, help="--nvidia: take every N-th file (1)")
    parser.add_argument(
        "--stages", nargs="+", default=["shards", "rows"], choices=("shards", "rows"),
        help="--nvidia: what to compare (both)",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="said in the result")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.nvidia:
        if not args.vocab or not (args.wiki or args.books):
            parser.error("--nvidia needs --vocab, and --wiki or --books")
        return compare(args)
    rows = dump_rows(args.dump, args.repeat) if args.dump else []
    if args.wiki or args.books:
        if not args.vocab:
            parser.error("--vocab is needed for the stages after text")
        rows += text_rows(args.wiki, args.books, args.vocab, args.repeat, args.instances)
    for row in rows:
        if "rows" in row:
            row["rows_per_second"] = row["rows"] / max(row["seconds"], 1e-9)
        else:
            row["mb_per_second"] = row["mb"] / max(row["seconds"], 1e-9)
    machine = this_machine()
    if args.json:
        print(json.dumps({**facts(args.note), "machine": machine, "stages": rows}, indent=2))
        return 0
    for row in rows:
        speed = (
            f"{row['rows_per_second']:12,.0f} rows/s"
            if "rows" in row
            else f"{row['mb_per_second']:12.1f} MB/s"
        )
        print(f"{row['stage']:<30} {speed}   {row['seconds']:8.2f} CPU-s")
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
