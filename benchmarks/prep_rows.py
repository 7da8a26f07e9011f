"""Speed of rows from token shards on one core: pairs and masks alone, NVIDIA's layout, files.

    python benchmarks/prep_rows.py --data PREPARED
        [--json FILE]

Times are CPU-seconds of one process, the best of the repetitions. Compiled code is loaded
beforehand. "pairs and masks" are the samples and masked rows in memory, without padding. "laid out"
adds the padded columns. Each compression adds the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import (
    PREPARATION_PACKAGES,
    add_result_options,
    footer,
    host_facts,
    write_result,
)
from bertds.config.row_settings import RowSettings
from bertds.data.formats.manifest import Manifest
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import empty_columns
from bertds.data.formats.token_shards import TokenShard
from bertds.data.samples.flat_rows import flat_instances, place_flat_rows
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info

_SEED = 12345
PAIRS_AND_MASKS = "pairs and masks"
PROMISED_ROWS = {"128:20": 150_000, "512:80": 60_000}
"""Rows per CPU-second of :data:`PAIRS_AND_MASKS`."""


def best_of(work: Callable[[], int], repeat: int) -> tuple[float, int]:
    """Return the least CPU-seconds and the rows of the last call."""
    best, rows = float("inf"), 0
    for _ in range(repeat):
        began = time.process_time()
        rows = work()
        best = min(best, time.process_time() - began)
    return best, rows


def rates(
    shards: list[TokenShard],
    tokenizer: TokenizerInfo,
    length: int,
    predictions: int,
    repeat: int,
) -> list[dict[str, Any]]:
    """Measure all stages for one row length; each includes those before it."""
    settings = RowSettings(sequence_length=length, max_predictions=predictions)
    pad = tokenizer.special_ids["pad"]

    def pairs_and_masks() -> int:
        made = flat_instances(shards, 0, settings, _SEED, tokenizer, chunk_rows=131_072 // length)
        return sum(flat.rows for flat in made)

    total = pairs_and_masks()  # compiled by now

    def laid_out() -> dict[str, np.ndarray]:
        columns = empty_columns(total, length, predictions, labels=True)
        first = 0
        for flat in flat_instances(shards, 0, settings, _SEED, tokenizer):
            place_flat_rows(flat, columns, np.arange(first, first + flat.rows), pad)
            first += flat.rows
        return columns

    stages: list[tuple[str, Callable[[], int]]] = [
        (PAIRS_AND_MASKS, pairs_and_masks),
        ("laid out", lambda: len(laid_out()["input_ids"])),
    ]
    columns = laid_out()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for compression in ("none", "lzf", "gzip"):
            stages.append(
                (
                    f"writing alone, {compression}",
                    lambda compression=compression: write_instance_file(  # type: ignore[misc]
                        Path(folder) / f"{compression}.hdf5", columns, compression=compression
                    ),
                )
            )
        for name, work in stages:
            seconds, rows = best_of(work, repeat if "gzip" not in name else 1)
            results.append(
                {
                    "rows_of": f"{length}:{predictions}",
                    "stage": name,
                    "rows": rows,
                    "cpu_seconds": round(seconds, 3),
                    "rows_per_cpu_second": round(rows / seconds),
                }
            )
    return results


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    stages: dict[str, dict[str, int]] = {}
    for row in result["rates"]:
        stages.setdefault(row["stage"], {})[row["rows_of"]] = row["rows_per_cpu_second"]
    print(
        f"{'rows per CPU-second':<24}" + "".join(f"{n:>12}" for n in PROMISED_ROWS) + "   promised"
    )
    for stage, rates in stages.items():
        promised = " / ".join(f"{n:,}" for n in PROMISED_ROWS.values())
        print(
            f"{stage:<24}"
            + "".join(f"{rates[n]:12,}" for n in PROMISED_ROWS)
            + (f"   {promised}" if stage == PAIRS_AND_MASKS else "")
        )
    print(footer(result))


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder")
    parser.add_argument("--shards", type=int, default=2, help="use the first N shards (2)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (3)")
    add_result_options(parser)
    args = parser.parse_args(argv)
    result = host_facts("prep_rows.py", argv, args.note, PREPARATION_PACKAGES)
    manifest = Manifest.load(args.data)
    tokenizer = load_tokenizer_info(args.data / "tokenizer")
    infos = manifest.splits["train"].shards[: args.shards]
    shards = [TokenShard.open(args.data / info.file, info, verify="size") for info in infos]
    result["rates"] = []
    for length in PROMISED_ROWS:
        tokens, predictions = map(int, length.split(":"))
        result["rates"] += rates(shards, tokenizer, tokens, predictions, args.repeat)
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
