"""Our preparation and NVIDIA's alternately on the same text: benchmarks/prep.py --nvidia DIR.

The clean documents of the sources are written as plain text, with one paragraph per line and a
blank line between documents. Both systems start from this text and end with files on disk. Complete
processes are timed, imports included. Times are CPU-seconds of user and system, because the machine
may be shared. Ours runs before and after NVIDIA's. Compiled code is in numba's cache beforehand, as
after any first run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertds.data.formats.manifest import Manifest
from data_prep.sources import READERS, file_units, find_files

_HERE = Path(__file__).resolve().parent
_MEGABYTE = 1e6
INSTANCES = "128:20"


def write_text(wiki: Sequence[str], books: Sequence[str], share: int, out: Path) -> float:
    """Write every ``share``-th source file as plain text; return megabytes."""
    out.mkdir()
    for kind, paths in (("wiki", wiki), ("books", books)):
        for number, file in enumerate(find_files(kind, paths, ())[::share]):
            texts = [
                document.text
                for unit in file_units(file, 32 << 20)
                for document in READERS[unit.reader](unit)
                if document.text
            ]
            (out / f"{kind}_{number:04d}.txt").write_text("\n\n".join(texts) + "\n", "utf-8")
    return sum(path.stat().st_size for path in out.iterdir()) / _MEGABYTE


def cpu_of(command: Sequence[str]) -> float:
    """Return the user and system seconds of a command.

    Raises:
        RuntimeError: it failed; shows the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            tail = said.read().decode("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} failed:\n{tail}")
    return usage.ru_utime + usage.ru_stime


def paired(
    wiki: Sequence[str],
    books: Sequence[str],
    vocab: Path,
    nvidia: Path,
    nvidia_python: str,
    share: int,
    stages: Sequence[str],
) -> list[dict[str, Any]]:
    """Time both systems; ``stages`` of "shards" (NVIDIA: rows, dupe 1) and "rows" (dupe 5)."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes = write_text(wiki, books, share, folder / "text")
        for stage in stages:
            dupe = 1 if stage == "shards" else 5
            theirs = [
                nvidia_python,
                str(_HERE / "nvidia_rows.py"),
                str(nvidia.resolve()),
                str(folder / "text"),
                str(vocab),
                str(folder / "nvidia.hdf5"),
                str(dupe),
            ]
            seconds = []
            rows = 0
            for run in ("warm", "first", "nvidia", "last"):
                if run == "nvidia":
                    nvidia_seconds = cpu_of(theirs)
                    continue
                out = folder / f"{stage}-{run}"
                small = run == "warm" and wiki  # one file of articles is enough
                source = max((folder / "text").iterdir()) if small else folder / "text"
                ours = [
                    sys.executable,
                    str(_HERE.parent / "data_prep" / "build_wiki_books.py"),
                    "--text",
                    str(source),
                    "--vocab",
                    str(vocab),
                    "--workers",
                    "1",
                    "--out",
                    str(out),
                ]
                if stage == "rows":
                    ours += ["--instances", INSTANCES, "--dupe-factor", "5"]
                    ours += ["--compression", "none"]
                used = cpu_of(ours)
                if run != "warm":
                    seconds.append(used)
                    if stage == "rows":
                        rows = sum(f["rows"] for f in Manifest.load(out).instances[0]["files"])
                shutil.rmtree(out)
            results.append(
                {
                    "stage": "text -> token shards" if stage == "shards" else "text -> HDF5 rows",
                    "nvidia_stage": f"sentences, rows {INSTANCES}, dupe {dupe}, gzip off",
                    "mb": megabytes,
                    "nvidia_seconds": nvidia_seconds,
                    "nvidia_mb_per_second": megabytes / nvidia_seconds,
                    "seconds": seconds,
                    "mb_per_second": megabytes * len(seconds) / sum(seconds),
                    "ratio": nvidia_seconds * len(seconds) / sum(seconds),
                    "rows": rows,
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr)
    return results
