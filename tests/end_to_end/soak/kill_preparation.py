"""Kills a preparation again and again, and compares what comes of it with an unbroken one.

    python tests/end_to_end/soak/kill_preparation.py --kills 50 --seed 0 -- \
        --wiki DUMP... --books DIR --vocab vocab.txt --instances 128:20

What follows ``--`` is given to build_wiki_books.py (without ``--out``). Each life is ended by
SIGKILL at a random moment; then the same command starts again. When it comes to its end, every
file must be the unbroken run's, byte for byte; a new round begins in an empty folder until there
were enough kills. The short form is in tests/data_prep/test_faults.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[3] / "data_prep" / "build_wiki_books.py"


def kill_often(
    kills: int, out: Path, arguments: Sequence[str], unbroken: dict[str, str], seed: int
) -> int:
    """Kill a preparation at random moments until this number of kills have hit. Returns the rounds.

    A moment is a number of new markers and some milliseconds, not a time: the machine may be busy.

    Args:
        kills: how many.
        out: the preparation's folder; not there yet.
        arguments: of build_wiki_books.py.
        unbroken: hashes of the files that an unbroken run wrote.
        seed: decides the moments.
    """
    chance = random.Random(seed)
    command = [sys.executable, str(_SCRIPT), *arguments, "--out", str(out)]
    hit, rounds = 0, 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        if hit < kills:
            wanted = _markers(out) + chance.randrange(12)
            while process.poll() is None and _markers(out) < wanted:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.03))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                hit += 1
                process.wait()
                continue
        code = process.wait(timeout=3600)
        assert code == 0, f"exit code {code} after {hit} kills: {' '.join(command)}"
        assert tree(out) == unbroken, f"{out} differs from the unbroken run after {hit} kills"
        rounds += 1
        if hit == kills:
            return rounds
        shutil.rmtree(out)


def _markers(out: Path) -> int:
    # os.walk passes over a folder that is removed meanwhile, glob does not.
    walk = os.walk(out / ".work")
    return sum(name.endswith(".json") for _, _, names in walk for name in names)


def tree(folder: Path) -> dict[str, str]:
    """Return every file below a folder with its hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main() -> int:
    """Prepare once in peace, then kill, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how many (50)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (0)")
    parser.add_argument("arguments", nargs="+", help="of build_wiki_books.py, behind --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        command = [sys.executable, str(_SCRIPT), *args.arguments, "--out", str(whole)]
        subprocess.run(command, check=True)
        began = time.monotonic()
        unbroken = tree(whole)
        rounds = kill_often(args.kills, Path(name) / "out", args.arguments, unbroken, args.seed)
    print(
        f"{args.kills} kills, {rounds} round{'s' * (rounds > 1)}, {time.monotonic() - began:.0f} "
        f"s; every round ended in the unbroken run's {len(unbroken)} files, byte for byte"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
