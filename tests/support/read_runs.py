"""What tests read from a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.monitor.run_files import read_metrics
from bertds.training.sample_log import read_samples


def read_lines(metrics: Path) -> list[dict[str, Any]]:
    """Every line of a metrics.jsonl."""
    return read_metrics(metrics).lines


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl").lines if "split" not in line]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in train_lines(run)]


def newest(run: Path) -> CheckpointReader:
    return CheckpointReader(step_folders(run / "checkpoints")[0])


def saved_steps(run: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in step_folders(run / "checkpoints")]


def assert_same_state(first: Path, second: Path, *, average: bool = False) -> None:
    """Weights and moments equal bit for bit; with ``average``, their moving averages too."""
    one, two = newest(first), newest(second)
    kinds = ("weight", "exp_avg", "exp_avg_sq", *(("average",) if average else ()))
    assert one.shapes == two.shapes and one.manifest["step"] == two.manifest["step"]
    different = [
        (name, kind)
        for name, shape in one.shapes.items()
        for kind in kinds
        if not one.read(name, kind, 0, torch.Size(shape).numel()).equal(
            two.read(name, kind, 0, torch.Size(shape).numel())
        )
    ]
    assert different == []


def weights(run: Path) -> dict[str, Any]:
    return dict(newest(run).weights())


def averages(run: Path) -> dict[str, torch.Tensor]:
    """The moving average of each weight, flat."""
    reader = newest(run)
    return {
        name: reader.read(name, "average", 0, torch.Size(shape).numel())
        for name, shape in reader.shapes.items()
    }


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not one[name].equal(two[name])]
    assert different == []


def samples(run: Path) -> dict[int, list[tuple[int, int]]]:
    """The samples of every step over all ranks, sorted: a repeated one occurs twice."""
    steps: dict[int, list[tuple[int, int]]] = {}
    for file in sorted(run.glob("samples_rank_*.jsonl")):
        for record in read_samples(file):
            steps.setdefault(record["step"], []).extend(map(tuple, record["samples"]))
    return {step: sorted(numbers) for step, numbers in steps.items()}
