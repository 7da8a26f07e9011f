"""A run that keeps a moving average of its weights: saved, validated, scored, exported.

A run that is stopped after every step and one on two processes are in test_train.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertds.checkpoint.format import CheckpointReader
from bertds.cli import main as bertds
from bertds.data.batches import MicroBatch
from bertds.pretrained.load import load_pretrained
from bertds.system.fault_points import injected
from bertds.train import entry
from tests.support.read_runs import assert_same_state, averages, newest, read_lines

AVERAGE = "schedule.ema_decay=0.6"


def test_validation_evaluate_and_export_use_the_average(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, now = tmp_path / "run", 0

    def begin(step: int, micro_step: int) -> None:
        nonlocal now
        now = step + 1

    def spoil(output: Any, micro_batch: MicroBatch) -> Any:
        if now == 3:  # no update: the average stays as it is, too
            output.mlm_loss_sum.register_hook(lambda gradient: gradient * math.inf)
        return output

    with injected("engine.seed", begin), injected("engine.output", spoil):
        settings = (AVERAGE, "checkpoint.every_steps=1", "checkpoint.keep_last=0")
        assert entry(command("run", *settings)) == 0
    # What is saved is what the saved weights average to.
    by_hand: dict[str, torch.Tensor] = {}
    updates = 0
    for step in range(1, 7):
        reader = CheckpointReader(run / "checkpoints" / f"step_{step:08d}")
        decay = min(0.6, (1 + updates) / (10 + updates))
        for name, weight in reader.weights():
            if step == 1:  # the weights before it are in no checkpoint
                by_hand[name] = reader.read(name, "average", 0, weight.numel()).double()
            elif step != 3:
                by_hand[name] = decay * by_hand[name] + (1 - decay) * weight.flatten().double()
        updates += step != 3
    for name, average in averages(run).items():
        torch.testing.assert_close(average.double(), by_hand[name], rtol=0, atol=1e-7)

    trained, last = load_pretrained(run), load_pretrained(run, average=False)
    own = dict(trained.model.named_parameters())
    assert all(torch.equal(own[n].flatten(), a) for n, a in averages(run).items())
    assert any(not torch.equal(own[n], p) for n, p in last.model.named_parameters())
    scores = []
    for option in ([], ["--last-weights"]):
        capsys.readouterr()
        assert bertds(["evaluate", str(run), "--json", *option]) == 0
        scores.append(json.loads(capsys.readouterr().out)["mlm_loss"])
        assert (
            bertds(["export", str(run), "--out", str(tmp_path / "model"), "--overwrite", *option])
            == 0
        )
        exported = load_file(tmp_path / "model" / "model.safetensors")
        weight = (trained if not option else last).model.bert.encoder.layer[0].output.dense.weight
        assert torch.equal(exported["bert.encoder.layer.0.output.dense.weight"], weight)
    assert read_lines(run / "metrics.jsonl")[-1]["mlm_loss"] == pytest.approx(scores[0], rel=1e-6)
    assert scores[0] != scores[1]


def test_it_does_not_change_the_training(command: Callable[..., list[str]], tmp_path: Path) -> None:
    extra = ("validation.every_steps=2", "deepspeed.zero_optimization.stage=2")
    assert entry(command("with", AVERAGE, *extra)) == 0
    assert entry(command("without", *extra)) == 0
    assert_same_state(tmp_path / "with", tmp_path / "without")
    assert not newest(tmp_path / "without").has_average()


def test_a_run_that_starts_to_average_begins_with_its_weights(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("run")) == 0
    assert entry(command("run", AVERAGE, "schedule.total_steps=7")) == 0
    reader = newest(tmp_path / "run")
    assert reader.has_average() and reader.manifest["step"] == 7


def test_a_decay_of_one_is_refused(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(command("run", "schedule.ema_decay=1.0")) == 2
    assert "schedule.ema_decay=1.0 would never change the average" in capsys.readouterr().err
