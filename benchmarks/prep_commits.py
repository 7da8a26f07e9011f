r"""Compare preparation at an earlier commit and now, in pairs on the same input.

    python benchmarks/prep_commits.py --before COMMIT --vocab vocab.txt \
        --wiki DUMP.bz2 --wiki EXTRACTED --books DIR

Times complete processes from files to token shards with one worker. Times are CPU-seconds of user
and system, because the machine may be shared. The earlier commit runs first in every second pair.
The result is the median of the pairs' ratios. Compiled code is in numba's cache beforehand.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
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
from benchmarks.prep_paired import cpu_of

_REPOSITORY = Path(__file__).resolve().parents[1]


def export(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder.

    Raises:
        CalledProcessError: there is no such commit.
    """
    folder.mkdir()
    packed = folder.with_suffix(".tar")
    subprocess.run(
        ["git", "-C", _REPOSITORY, "archive", "--output", packed, commit, "bertds", "data_prep"],
        check=True,
    )
    shutil.unpack_archive(packed, folder)
    return folder


def seconds_of(tree: Path, option: str, source: str, vocab: Path) -> float:
    """Return the CPU-seconds in which the preparation of a source tree makes token shards."""
    with tempfile.TemporaryDirectory() as out:
        return cpu_of(
            [
                *(sys.executable, str(tree / "data_prep" / "build_wiki_books.py")),
                *(option, source, "--vocab", str(vocab), "--workers", "1", "--out", f"{out}/out"),
            ]
        )


def compare(before: Path, option: str, source: str, vocab: Path, pairs: int) -> dict[str, Any]:
    """Time both trees in turn; return the seconds and the median ratio, above 1 if faster now."""
    seconds: dict[Path, list[float]] = {before: [], _REPOSITORY: []}
    for number in range(-1, pairs):
        order = list(seconds)[:: -1 if number % 2 else 1]
        for tree in order:
            used = seconds_of(tree, option, source, vocab)
            if number >= 0:  # the first pair only fills caches
                seconds[tree].append(used)
    then, now = seconds[before], seconds[_REPOSITORY]
    ratio = statistics.median(a / b for a, b in zip(then, now, strict=True))
    return {"source": Path(source).name, "before": then, "now": now, "ratio": ratio}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--before", required=True, metavar="COMMIT", help="earlier commit to compare with"
    )
    parser.add_argument("--vocab", required=True, type=Path, help="a vocab.txt")
    for option in ("wiki", "books", "text"):
        parser.add_argument(
            f"--{option}", action="append", default=[], help="a source; one table row each"
        )
    parser.add_argument("--pairs", type=int, default=7, help="runs per commit (7)")
    add_result_options(parser)
    args = parser.parse_args(argv)
    result = host_facts("prep_commits.py", argv, args.note, PREPARATION_PACKAGES)
    result |= {"before": args.before, "sources": []}
    print(f"{'source':<44}{'before, s':>10}{'now, s':>8}{'times as fast':>15}")
    with tempfile.TemporaryDirectory() as folder:
        tree = export(args.before, Path(folder) / "before")
        for option in ("wiki", "books", "text"):
            for source in getattr(args, option):
                row = compare(tree, f"--{option}", source, args.vocab, args.pairs)
                result["sources"].append(row)
                then, now = (statistics.median(row[when]) for when in ("before", "now"))
                print(f"{row['source']:<44}{then:>10.2f}{now:>8.2f}{row['ratio']:>15.3f}")
    print(footer(result))
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
