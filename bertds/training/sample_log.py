"""The record of which samples each step used: ``samples_rank_00000.jsonl``, one line per step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bertds.system.atomic_files import append_line, write_text
from bertds.system.json_fields import parse_json


class SampleLog:
    """The record of one rank. Steps that a stopped run repeats are removed when it opens.

    Args:
        run_dir: the run folder.
        rank: this rank.
        step: the step from which the run continues.
    """

    def __init__(self, run_dir: Path, rank: int, step: int) -> None:
        for path in sorted(run_dir.glob("samples_rank_*.jsonl")) if rank == 0 else []:
            cut_samples(path, step)  # also of ranks that do not exist in this attempt
        self._path = run_dir / f"samples_rank_{rank:05d}.jsonl"

    def write(self, step: int, samples: np.ndarray) -> None:
        """Record one step's samples, int64 [rows, 2]: epoch and sample number."""
        append_line(self._path, json.dumps({"step": step, "samples": samples.tolist()}))


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read a record; a last line that a crash truncated is omitted."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(parse_json(line))
        except ValueError:
            continue
    return records


def cut_samples(path: Path, step: int) -> None:
    """Remove the lines of steps after ``step``, and truncated lines."""
    kept = [record for record in read_samples(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
