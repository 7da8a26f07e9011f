r"""The data loader at an earlier commit and at HEAD, in turns, on the same local folder.

    python benchmarks/loader_commits.py --before COMMIT [--data PREPARED_FOLDER]

Two processes, one per commit, make rows of 128 tokens through the whole loader. They take turns of
a fraction of a second and wait while the other works, so that what else the machine does hits both.
Of a pair the earlier commit is first in every second one, and new processes are started now and
then, since where a process has its memory has an effect of a few per cent. What is counted is the
process's CPU time, all its threads together. The result is the median of the pairs' ratios with its
95 % interval (from the order of the ratios: it assumes nothing of how they are distributed).
``--before HEAD`` shows what the method itself gives.

With ``--instructions``, valgrind counts the instructions of ``--pairs`` turns instead, of one
process per commit; what else the machine does has little effect on them.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import add_result_options, footer, host_facts, write_result
from benchmarks.made_up_shards import write_prepared
from benchmarks.prep_commits import export

_ROWS = 2048
# Works in any commit that has these names; says the CPU-seconds of each turn.
_WORKER = """
import sys, time
from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.data.loader import BatchLoader, open_source
data = DataConfig(path=sys.argv[1], sequence_length=128, max_predictions_per_sequence=20)
rows, steps = int(sys.argv[2]), int(sys.argv[3])
plan = BatchPlan(global_batch_size=rows, micro_batch_size=64, world_size=1)
with BatchLoader(open_source(data, 1), data, plan, 0, seed=1) as loader:
    spent = time.process_time()
    for line in sys.stdin:
        for _ in range(steps):
            next(loader)
        while not loader._queue.full():  # what is made ahead belongs to this turn
            time.sleep(0.002)
        before, spent = spent, time.process_time()
        print(spent - before, flush=True)
"""


def _command(data: Path, steps: int) -> list[str]:
    return [sys.executable, "-c", _WORKER, str(data), str(_ROWS), str(steps)]


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


class Worker:
    """A process that runs one commit's loader, a turn at a time."""

    def __init__(
        self,
        tree: Path,
        data: Path,
        steps: int,
        tool: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [*tool, *_command(data, steps)],
            cwd=tree,
            env={**_environment(tree), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self) -> float:
        """Return the CPU-seconds of one turn.

        Raises:
            ChildProcessError: the process has ended; it has said why.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise ChildProcessError("a loader has ended")
        return float(line)

    def count(self, on: bool) -> None:
        """Let callgrind, if the process runs in it, begin or end to count instructions."""
        command = ["callgrind_control", "-i", "on" if on else "off", str(self._process.pid)]
        subprocess.run(command, check=True, capture_output=True)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # the end of its input


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median: two of the values, by their order."""
    ordered, count = sorted(values), len(values)
    # The number of values below the median is binomial (count, 1/2).
    below, reached = 0, 0.5**count
    while reached <= 0.025 and below < (count - 1) // 2:
        below += 1
        reached += math.comb(count, below) * 0.5**count
    return ordered[max(below - 1, 0)], ordered[count - max(below, 1)]


def compare(
    trees: Sequence[Path], data: Path, processes: int, pairs: int, steps: int
) -> dict[str, Any]:
    """Time both trees in turns; return the seconds, the ratio now / before and its interval."""
    seconds: list[list[float]] = [[], []]
    for number in range(-1, processes):
        with ExitStack() as stack:
            workers: dict[int, Worker] = {}
            for one in (0, 1) if number % 2 else (1, 0):
                workers[one] = Worker(trees[one], data, steps)
                stack.callback(workers[one].close)
                for _ in range(2):  # fills caches
                    workers[one].turn()
            if number < 0:
                continue  # these two only compile: what comes from the cache may be quicker
            for pair in range(pairs):
                for one in (0, 1) if pair % 2 else (1, 0):
                    seconds[one].append(workers[one].turn())
    ratios = [now / then for then, now in zip(*seconds, strict=True)]
    rates = [round(steps * _ROWS / statistics.median(spent)) for spent in seconds]
    low, high = median_interval(ratios)
    return {
        "rows_per_cpu_second": dict(zip(("before", "now"), rates)),
        "cpu_seconds_now_over_before": round(statistics.median(ratios), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "seconds": {
            when: [round(x, 4) for x in spent]
            for when, spent in zip(("before", "now"), seconds, strict=True)
        },
    }


def instructions_of(tree: Path, data: Path, steps: int, turns: int) -> float:
    """Return the instructions per row that valgrind's callgrind counts in ``turns`` turns."""
    # The compiled loops are kept for the processor that they are made for. valgrind shows another
    # one than the machine has, for which they would be compiled within it, which takes very long.
    own = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    compiling = Worker(tree, data, steps, environment=own)
    compiling.turn()
    compiling.close()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--log-file={log}"]
        worker = Worker(tree, data, steps, [*tool, "--callgrind-out-file=/dev/null"], own)
        try:
            for _ in range(2):  # fills caches
                worker.turn()
            worker.count(True)
            for _ in range(turns):
                worker.turn()
            worker.count(False)
        finally:
            worker.close()
        found = re.search(r"Collected : (\d+)", log.read_text())
        assert found is not None
        return int(found[1]) / (turns * steps * _ROWS)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, metavar="COMMIT", help="what to compare with")
    parser.add_argument("--data", type=Path, help="a prepared folder; default: made-up text")
    parser.add_argument("--processes", type=int, default=10, help="started of each (10)")
    parser.add_argument("--pairs", type=int, default=12, help="turns of each process (12)")
    parser.add_argument("--steps", type=int, default=20, help=f"of {_ROWS} rows, per turn (20)")
    parser.add_argument("--instructions", action="store_true", help="count them, by valgrind")
    add_result_options(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_prepared(Path(folder) / "data", 8_000_000)
        trees = [export(args.before, Path(folder) / "before"), export("HEAD", Path(folder) / "now")]
        result = host_facts("loader_commits.py", argv, args.note) | {"before": args.before}
        if args.instructions:
            then, now = (
                instructions_of(tree, data.resolve(), args.steps, args.pairs) for tree in trees
            )
            result["instructions_per_row"] = {"before": round(then), "now": round(now)}
            print(f"instructions per row: {then:,.0f} before, {now:,.0f} now ({now / then:.4f})")
            print(footer(result))
            write_result(result, args.json)
            return 0
        result |= compare(trees, data.resolve(), args.processes, args.pairs, args.steps)
    rates, (low, high) = result["rows_per_cpu_second"], result["interval_95"]
    print(f"rows per CPU-second: {rates['before']:,} before, {rates['now']:,} now")
    ratio = result["cpu_seconds_now_over_before"]
    pairs = args.processes * args.pairs
    print(f"CPU-seconds now / before: {ratio:.3f} ({low:.3f} to {high:.3f}), {pairs} pairs")
    print(footer(result))
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
