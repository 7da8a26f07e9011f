r"""How long training waits for its rows if they come from a store with limited bandwidth.

    python benchmarks/store_stall.py [--megabytes-per-second 100] [--rows-per-second 20000]

A web server in a separate process serves shards of made-up text. The bandwidth limits all
connections together. A loop asks the loader for 2,048 rows of 128 tokens per step and sleeps in
between, at the rate of --rows-per-second. Eight H100 read 20,000 rows/s with BERT-large
(``docs/performance.md``).

The cache holds two blocks and the lengths of the sentences, which is less than the corpus. So
shards are constantly fetched and evicted. Blocks have 12.5% of the loader's default size, so that
each minute has several. The share of time that the loop waits is counted from the first batch on.
The time before it is reported in seconds: each shard is read once for its lengths, and then the
first block. The same loop on the local folder shows the cost of the machine itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import add_result_options, footer, host_facts, write_result
from benchmarks.made_up_shards import write_prepared
from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.data.loader import BatchLoader, open_source
from bertds.data.sources import token_source
from tests.support.store_server import Store, cache_bytes, files_of_shards

_ROWS = 2048
_CACHED_BLOCKS = 2.2


def _serve(folder: str, rate: float, parent: Connection) -> None:
    store = Store(Path(folder), bytes_per_second=rate)
    parent.send(store.url)
    while parent.poll(None) and parent.recv():
        parent.send(sum(store.served.values()))


@contextmanager
def limited_store(folder: Path, rate: float) -> Iterator[tuple[str, Connection]]:
    """Serve a folder at a rate in bytes/s; give its URL and where to ask for the bytes."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=_serve, args=(str(folder), rate, there), daemon=True)
    server.start()
    try:
        yield here.recv(), here
    finally:
        here.send(False)
        server.join(10)


def served_bytes(store: Connection) -> int:
    """Return how many bytes the server has sent so far."""
    store.send(True)
    return int(store.recv())


def wait_share(
    data: DataConfig,
    rows_per_second: float,
    seconds: float,
    traffic: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
    """Take rows at a rate; return the share of the time that the loop waited."""
    began = time.perf_counter()
    plan = BatchPlan(global_batch_size=_ROWS, micro_batch_size=256, world_size=1)
    with BatchLoader(open_source(data, 1), data, plan, 0, seed=1) as loader:
        next(loader)
        before_bytes = traffic()
        started = due = time.perf_counter()
        before, steps = loader.stall_seconds, 0
        while (now := time.perf_counter()) - started < seconds:
            due = max(now, due + _ROWS / rows_per_second)
            time.sleep(due - now)
            next(loader)
            steps += 1
        passed = time.perf_counter() - started
        return {
            "seconds_to_first_batch": round(started - began, 2),
            "rows_per_second": round(steps * _ROWS / passed),
            "wait_share": round((loader.stall_seconds - before) / passed, 6),
            "read_mb": round((traffic() - before_bytes) / 1e6),
        }


def measure(
    folder: Path, megabytes: float, rows_per_second: float, seconds: float, block_bytes: int
) -> dict[str, Any]:
    """Take rows from the store and from the local folder; return both shares and the traffic."""
    data = DataConfig(path=str(folder), sequence_length=128, max_predictions_per_sequence=20)
    corpus = sum(path.stat().st_size for path in files_of_shards(folder / "train"))
    local = wait_share(data, rows_per_second, seconds)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache,
        limited_store(folder, megabytes * 1e6) as (url, store),
    ):
        limit = _CACHED_BLOCKS * block_bytes + 0.15 * corpus  # sentence lengths stay in it
        remote = replace(data, path=url, cache_dir=cache, cache_gib=limit / 2**30)
        stored = wait_share(remote, rows_per_second, seconds, partial(served_bytes, store))
        return {
            "need_rows_per_second": rows_per_second,
            "store": stored,
            "local": local,
            "corpus_mb": round(corpus / 1e6),
            "cache_bound_mb": round(limit / 1e6),
            "cache_used_mb": round(cache_bytes(Path(cache)) / 1e6),
        }


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes-per-second", type=float, default=100.0, help="bandwidth (100)")
    parser.add_argument(
        "--rows-per-second",
        type=float,
        nargs="+",
        default=[20_000.0],
        help="rate of the loop (20,000)",
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="time per loop (120)")
    parser.add_argument("--shards", type=int, default=40, help="shards of 4,000,000 tokens (40)")
    parser.add_argument(
        "--block-rows", type=int, default=250_000, help="rows shuffled together (250,000)"
    )
    add_result_options(parser)
    args = parser.parse_args(argv)
    result = host_facts("store_stall.py", argv, args.note)
    result |= {"megabytes_per_second": args.megabytes_per_second, "needs": []}
    token_source.BLOCK_ROWS = args.block_rows
    print(f"{'need, rows/s':>14}{'waits':>10}{'local':>10}{'first batch, s':>16}{'read, MB':>10}")
    with tempfile.TemporaryDirectory() as top:
        folder = write_prepared(Path(top) / "data", 4_000_000, shards=args.shards)
        source = open_source(DataConfig(path=str(folder), verify="size"), 1)
        largest = max(path.stat().st_size for path in files_of_shards(folder / "train"))
        rows = source.rows_by_shard(0)
        per_block = -(-args.block_rows // int(rows.min()))
        for need in args.rows_per_second:
            row = measure(
                folder, args.megabytes_per_second, need, args.seconds, per_block * largest
            )
            result["needs"].append(row)
            stored, local = row["store"], row["local"]
            print(
                f"{need:>14,.0f}{stored['wait_share']:>10.3%}{local['wait_share']:>10.3%}"
                f"{stored['seconds_to_first_batch']:>16.1f}{stored['read_mb']:>10,}"
            )
    print(footer(result))
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
