"""What a run folder holds, in a form that can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.monitor.run_files import read_metrics

# What the training decides; the rest of a line depends on the clock, the memory and the restarts.
RESULTS = {
    "step",
    "split",
    "loss",
    "mlm_loss",
    "nsp_loss",
    "mlm_accuracy",
    "nsp_accuracy",
    "lr",
    "grad_norm",
    "samples",
    "tokens",
    "skipped_steps",
}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The results in all lines of metrics.jsonl."""
    return [
        {key: value for key, value in line.items() if key in RESULTS}
        for line in read_metrics(run / "metrics.jsonl").lines
    ]


def train_steps(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run) if "split" not in line]


def weights(run: Path) -> dict[str, Any]:
    return dict(CheckpointReader(step_folders(run / "checkpoints")[0]).weights())


def assert_same_run(one: Path, other: Path) -> None:
    """The same metrics, and bit for bit the same final fp32 weights."""
    assert metrics(one) == metrics(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []


def samples(run: Path) -> dict[int, set[tuple[int, int]]]:
    """(epoch, sample) numbers of each step, of all ranks together."""
    steps: dict[int, set[tuple[int, int]]] = {}
    for file in sorted(run.glob("samples_rank_*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            steps.setdefault(record["step"], set()).update(map(tuple, record["samples"]))
    return steps


def history(run: Path) -> list[str]:
    return (run / "slurm" / "history").read_text().splitlines()
