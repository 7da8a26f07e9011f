"""Time and memory of preparation for 1, 4 and 16 times the corpus, and with one and two workers.

    python benchmarks/prep_scaling.py --wiki EXTRACTED --vocab vocab.txt
        [--json FILE]

The corpus is plain text. Its copies differ in one word per document, so that none is a duplicate.
Memory is the largest resident set of any process, as counted by the system. Each worker is a
process. Two workers are compared with one by wall time and by CPU time. Wall time needs an idle
machine, and "cores_had" shows whether it was idle. By CPU time, the work of the parent is serial
(Amdahl) and the work of the workers is halved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
from benchmarks.prep_paired import write_text

_SCRIPT = Path(__file__).resolve().parents[1] / "data_prep" / "build_wiki_books.py"
# Runs the preparation in a process of its own; says what it and its workers used.
_METER = """
import json, resource, runpy, sys, time
began = time.perf_counter()
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    code = stop.code
own, workers = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print("used " + json.dumps({
    "wall_seconds": time.perf_counter() - began,
    "own_cpu_seconds": own.ru_utime + own.ru_stime,
    "workers_cpu_seconds": workers.ru_utime + workers.ru_stime,
    "peak_bytes": max(own.ru_maxrss, workers.ru_maxrss) * 1024,
}))
sys.exit(code)
"""


def copies(text: Path, times: int, out: Path) -> float:
    """Write the corpus ``times`` over, each document of a copy marked; return megabytes."""
    out.mkdir()
    for number in range(times):
        for path in sorted(text.iterdir()):
            marked = path.read_text("utf-8")
            if number:
                marked = marked.replace("\n\n", f" copy{number}\n\n")
            (out / f"{number:02d}_{path.name}").write_text(marked, "utf-8")
    return sum(path.stat().st_size for path in out.iterdir()) / 1e6


def prepare(
    text: Path, vocab: Path, out: Path, workers: int, more: Sequence[str]
) -> dict[str, float]:
    """Return what one preparation used; see :data:`_METER`."""
    command = [
        sys.executable,
        "-c",
        _METER,
        str(_SCRIPT),
        "--text",
        str(text),
        "--vocab",
        str(vocab),
        "--workers",
        str(workers),
        "--out",
        str(out),
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    meter = subprocess.run(command, capture_output=True, text=True, env=environment)
    if meter.returncode:
        raise RuntimeError(meter.stderr)
    shutil.rmtree(out)
    return dict(json.loads(meter.stdout.rpartition("used ")[2]))


def row(name: str, megabytes: float, used: dict[str, float]) -> dict[str, Any]:
    """Return one line of the result."""
    cpu = used["own_cpu_seconds"] + used["workers_cpu_seconds"]
    return {
        "run": name,
        "mb_text": round(megabytes, 1),
        "wall_seconds": round(used["wall_seconds"], 2),
        "cpu_seconds": round(cpu, 2),
        "parent_cpu_seconds": round(used["own_cpu_seconds"], 2),
        "mb_per_cpu_second": round(megabytes / cpu, 2),
        "peak_mb_of_a_process": round(used["peak_bytes"] / 1e6),
    }


def speed_up(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    """Compare one worker and two, by the clock and by CPU time, which others' load hardly moves.

    All that the parent of two workers computes counts as serial, though part of it overlaps.
    """
    serial, parallel = two["own_cpu_seconds"], two["workers_cpu_seconds"]
    return {
        "speed_up_by_clock": round(one["wall_seconds"] / two["wall_seconds"], 3),
        "cores_had": round((serial + parallel) / two["wall_seconds"], 2),
        "serial_share_of_cpu": round(serial / (serial + parallel), 3),
        "speed_up_by_cpu": round(one["own_cpu_seconds"] / (serial + parallel / 2), 3),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    heads = ("MB text", "wall s", "CPU s", "parent's", "MB/CPU-s", "peak MB")
    print(f"{'':<20}" + "".join(f"{head:>10}" for head in heads))
    for run in result["runs"]:
        print(f"{run['run']:<20}" + "".join(f"{v:>10}" for k, v in run.items() if k != "run"))
    for pair in result["two_workers"]:
        print(
            f"two workers: {pair['speed_up_by_clock']:.2f} times one by the clock with "
            f"{pair['cores_had']:.2f} cores, {pair['speed_up_by_cpu']:.2f} by CPU time "
            f"({pair['serial_share_of_cpu']:.1%} of it the parent's)"
        )
    print(footer(result))


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run all sizes, then the pairs of one and two workers."""
    more = ["--instances", args.instances, "--compression", "none"] if args.instances else []
    rows, pairs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(args.wiki, args.books, args.share, folder / "text")
        prepare(folder / "text", args.vocab, folder / "warm", 1, more)  # compiled beforehand
        for times in args.sizes:
            text = folder / f"x{times}"
            megabytes = copies(folder / "text", times, text)
            used = prepare(text, args.vocab, folder / "out", 1, more)
            rows.append(row(f"{times}x, one worker", megabytes, used))
            shutil.rmtree(text)
        if args.workers_times:
            text = folder / "pair"
            megabytes = copies(folder / "text", args.workers_times, text)
            for _ in range(args.repeat):
                one = prepare(text, args.vocab, folder / "out", 1, more)
                two = prepare(text, args.vocab, folder / "out", 2, more)
                rows.append(row(f"{args.workers_times}x, one worker", megabytes, one))
                rows.append(row(f"{args.workers_times}x, two workers", megabytes, two))
                pairs.append(speed_up(one, two))
    return {"runs": rows, "two_workers": pairs}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wiki", nargs="*", default=[], help="folders of extracted articles")
    parser.add_argument("--books", nargs="*", default=[], help="folders of books")
    parser.add_argument("--vocab", type=Path, required=True, help="a vocab.txt")
    parser.add_argument("--share", type=int, default=1, help="take every N-th file (1)")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1, 4, 16], help="multiples of the corpus (1 4 16)"
    )
    parser.add_argument(
        "--workers-times", type=int, default=4, help="multiple for the 2-worker run (4); 0: none"
    )
    parser.add_argument("--repeat", type=int, default=1, help="pairs of 1- and 2-worker runs (1)")
    parser.add_argument("--instances", default="", help="also write rows, e.g. 128:20")
    add_result_options(parser)
    args = parser.parse_args(argv)
    if not (args.wiki or args.books):
        parser.error("--wiki or --books is needed")
    result = host_facts("prep_scaling.py", argv, args.note, PREPARATION_PACKAGES)
    result |= measure(args)
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
