"""Checkpoints of real runs: what is kept, saving in the background, a full disk, conversion."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertds.checkpoint import background as background_module
from bertds.checkpoint import save as checkpoint_module
from bertds.checkpoint.find import locate
from bertds.checkpoint.save import Checkpoints
from bertds.checkpoint.train_state import TrainState
from bertds.cli import main as bertds
from bertds.errors import BertdsError
from bertds.monitor.run_files import read_metrics
from tests.checkpoint.test_checkpoint import FakeEngine, make
from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_state, losses, newest, saved_steps


def test_last_milestones_and_best_are_kept(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    # The learning rate is far too high after step 5, so the best comes early.
    extra = [
        "schedule.total_steps=12",
        "validation.every_steps=5",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=1",
        "checkpoint.milestone_steps=4",
        "checkpoint.keep_best=true",
        "deepspeed.optimizer.params.lr=0.3",
        "schedule.warmup_steps=12",
        "schedule.warmup_power=4",
    ]
    code, text = fork_server.run(command("run", *extra), output=tmp_path)
    assert code == 0, text
    scores = {
        line["step"]: line["mlm_loss"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl").lines
        if line.get("split") == "validation"
    }
    assert list(scores) == [5, 10, 12]
    best = min(scores, key=scores.__getitem__)
    assert best == 5  # no multiple of every_steps: saved because it was the best
    assert saved_steps(tmp_path / "run") == [12, 8, 5, 4]
    assert newest(tmp_path / "run").manifest["state"]["best_step"] == 5


@pytest.mark.parametrize("world_size", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_saving_in_the_background_saves_the_same(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, world_size: int
) -> None:
    extra = [
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=0",
        "deepspeed.zero_optimization.stage=2",
    ]
    for name, setting in (("a", "false"), ("b", "true")):
        one = command(name, *extra, f"checkpoint.background={setting}")
        code, text = fork_server.run(one, world_size, output=tmp_path)
        assert code == 0, text
    for step in range(1, 7):
        one, two = (
            locate(tmp_path / name / "checkpoints" / f"step_{step:08d}") for name in ("a", "b")
        )
        for name, tensor in one.weights():
            assert torch.equal(dict(two.weights())[name], tensor), (step, name)
        assert one.manifest["state"]["samples"] == two.manifest["state"]["samples"] == 12 * step
    left = {path.name for path in (tmp_path / "b" / "checkpoints").rglob("*.json")}
    assert left == {"manifest.json"}


def test_a_background_save_is_a_snapshot_of_its_moment(tmp_path: Path) -> None:
    engine = FakeEngine()
    checkpoints = make(tmp_path, engine, background=True)
    before = {key: tensor.clone() for key, tensor in engine.full.items()}
    state = TrainState(step=1)
    checkpoints.save(state, wait=False)
    for tensor in engine.full.values():
        tensor.add_(1.0)
    state.step = 2
    checkpoints.finish()
    reader = locate(tmp_path)
    assert reader.manifest["step"] == reader.manifest["state"]["step"] == 1
    for (name, kind), tensor in before.items():
        assert torch.equal(reader.read(name, kind, 0, tensor.numel()), tensor)


def test_a_failed_background_save_is_raised_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make(tmp_path, background=True)
    checkpoints.save(TrainState(step=1), wait=False)
    checkpoints.finish()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "rank_00000.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(background_module, "write_pieces", full)
        checkpoints.save(TrainState(step=2), wait=False)
        with pytest.raises(BertdsError, match=r"checkpoint not saved: .*disk is full"):
            checkpoints.save(TrainState(step=3), wait=False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_manifest", full)
        checkpoints.save(TrainState(step=4), wait=False)
        with pytest.raises(BertdsError, match=r"checkpoint not saved: .*disk is full"):
            checkpoints.save(TrainState(step=4), wait=True)  # a stop waits, and hears of it
    assert locate(tmp_path).manifest["step"] == 1
    assert not list(checkpoints.folder.glob(".tmp-*"))
    checkpoints.save(TrainState(step=5), wait=True)
    assert locate(tmp_path).manifest["step"] == 5


def test_a_background_save_without_the_other_ranks_files_stays_invisible(tmp_path: Path) -> None:
    class TwoRanks(FakeEngine):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, value]

    checkpoints: Checkpoints = make(tmp_path, TwoRanks(), background=True)
    checkpoints.save(TrainState(step=1), wait=False)
    checkpoints._background.abandon()  # type: ignore[union-attr]
    checkpoints.abandon()
    assert not list(checkpoints.folder.glob("step_*"))


@pytest.mark.parametrize("background", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_loads(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, background: str
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a tmpfs")
    try:
        extra = [
            "checkpoint.every_steps=1",
            "checkpoint.keep_last=0",
            "schedule.total_steps=12",
            f"checkpoint.background={background}",
        ]
        # Past the estimate of the room needed, so that the write itself hits the wall.
        code, text = fork_server.run(
            command("small/run", *extra), output=tmp_path, plans={0: {"room": 2**40}}
        )
        assert code == 1, text
        assert "Traceback" not in text
        last = text.strip().splitlines()[-1]
        assert last.startswith("bertds: error: checkpoint not saved: ") and "disk is full" in last
        steps = saved_steps(mount / "run")
        assert steps and newest(mount / "run").manifest["step"] == steps[0]
        assert not list((mount / "run" / "checkpoints").glob(".tmp-*"))
        # Without the blindfold it is noticed before anything is written.
        code, text = fork_server.run(command("small/run", *extra), output=tmp_path)
        assert code == 1 and " free, but the checkpoint needs " in text.strip().splitlines()[-1]
        # With room again, the run continues.
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        code, text = fork_server.run(command("small/run", *extra), output=tmp_path)
        assert code == 0 and f"resuming at step {steps[0]}" in text
        assert len(losses(mount / "run")) == 12
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_ranks_are_merged_and_weights_extracted(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = command("two", "deepspeed.zero_optimization.stage=3")
    assert fork_server.run(two, 2, output=tmp_path)[0] == 0
    run, out = str(tmp_path / "two"), tmp_path / "out"
    assert len(list((tmp_path / "two/checkpoints/step_00000006").glob("*.safetensors"))) == 2
    assert bertds(["checkpoint", "convert", run, "--out", str(out)]) == 0
    merged = out / "step_00000006"
    assert capsys.readouterr().out.strip() == str(merged)
    assert [path.name for path in merged.glob("*.safetensors")] == ["rank_00000.safetensors"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again/checkpoints").symlink_to(out)
    assert_same_state(tmp_path / "again", tmp_path / "two")
    assert bertds(["checkpoint", "convert", run, "--out", str(out), "--to", "weights"]) == 0
    tensors = load_file(out / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in newest(tmp_path / "two").weights()
    }
    capsys.readouterr()
    assert bertds(["checkpoint", "convert", run, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert bertds(["checkpoint", "convert", run]) == 2
    # The merged checkpoint is a start for another run.
    code, text = fork_server.run(command("next", f"init.from={merged}"), output=tmp_path)
    assert code == 0 and "weights and moments from" in text
