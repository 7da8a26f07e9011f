"""Damaged data and checkpoints in whole runs: noticed, named, and never trained on in silence."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_state, losses, saved_steps


@pytest.fixture(scope="module")
def stopped(
    fork_server: ForkServer,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
) -> tuple[Path, list[str]]:
    """An unbroken run ``whole``, one that is stopped at step 4 with two checkpoints, settings."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = [
        "--deepspeed_config",
        str(tiny_json),
        "--config",
        str(tiny_recipe),
        "--set",
        f"data.path={tiny_data}",
        "checkpoint.every_steps=2",
        "deepspeed.zero_optimization.stage=2",
    ]
    for run, plan in (("whole", {}), ("stopped", {"stop": 4})):
        plans = {0: plan, 1: plan}
        command = [*settings, f"run.dir={folder / run}"]
        code, text = fork_server.run(command, 2, output=folder, plans=plans)
        assert code == (75 if plan else 0), text
    assert saved_steps(folder / "stopped") == [4, 2]
    return folder, settings


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def damage(checkpoints: Path, how: str) -> str:
    """Damage the newest checkpoint; return what the warning must name."""
    newest = checkpoints / "step_00000004"
    data = newest / "rank_00001.safetensors"
    if how == "flipped byte":
        flip(data, len(data.read_bytes()) // 2)
    elif how == "truncated file":
        data.write_bytes(data.read_bytes()[:-100])
    elif how == "missing file":
        data.unlink()
    elif how == "missing manifest":
        (newest / "manifest.json").unlink()
        return "step_00000004"
    elif how == "latest that names nothing":
        (checkpoints / "latest").write_text("step_00000777\n")
        return "step_00000777"
    return "rank_00001.safetensors"


@pytest.mark.parametrize(
    "how",
    [
        "flipped byte",
        "missing file",
        pytest.param("truncated file", marks=pytest.mark.slow),
        pytest.param("missing manifest", marks=pytest.mark.slow),
        "latest that names nothing",
    ],
)
def test_the_good_checkpoint_before_is_used(
    fork_server: ForkServer, stopped: tuple[Path, list[str]], tmp_path: Path, how: str
) -> None:
    folder, settings = stopped
    run = tmp_path / "run"
    shutil.copytree(folder / "stopped", run)
    named = damage(run / "checkpoints", how)
    code, text = fork_server.run([*settings, f"run.dir={run}"], 2, output=tmp_path)
    assert code == 0, text
    (warning,) = [line for line in text.splitlines() if "warning:" in line]
    assert named in warning
    if "latest" in how:
        assert "resuming at step 4" in text
    else:
        assert "falling back to" in warning and "step_00000002" in warning
        assert "resuming at step 2" in text
    assert_same_state(run, folder / "whole")
    assert losses(run) == losses(folder / "whole")


def test_moments_that_are_gone_are_never_a_fresh_start(
    fork_server: ForkServer, stopped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Rank 1's file holds its share of weights and moments; without it nothing is trained."""
    folder, settings = stopped
    run = tmp_path / "run"
    shutil.copytree(folder / "stopped", run)
    for file in run.rglob("rank_00001.safetensors"):
        file.unlink()
    before = (run / "metrics.jsonl").read_text()
    code, text = fork_server.run([*settings, f"run.dir={run}"], output=tmp_path)
    assert code == 2 and "Traceback" not in text
    assert "no checkpoint is intact" in text and "rank_00001.safetensors: missing" in text
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "missing"])
def test_a_damaged_shard_is_noticed_before_the_first_step(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    tiny_data: Path,
    how: str,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shard = data / "train" / "shard_00001.h5"
    if how == "flipped bit":
        flip(shard, random.Random(0).randrange(shard.stat().st_size))
    elif how == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    one = [a for a in command("run") if not a.startswith("data.path=")] + [f"data.path={data}"]
    code, text = fork_server.run(one, output=tmp_path)
    assert code == 2 and "Traceback" not in text
    assert str(shard) in text.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
