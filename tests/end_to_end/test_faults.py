"""Bad gradients: skipped, named, and the end of a run that has nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bertds.checkpoint.train_state import TrainState
from bertds.config.recipe import GuardConfig
from bertds.training.bad_step_guard import Guard
from tests.support.fork_server import ForkServer
from tests.support.read_runs import (
    assert_same_state,
    losses,
    newest,
    samples,
    saved_steps,
    train_lines,
)

SPIKY = ["guard.spike_sigmas=6", "guard.spike_window=4", "schedule.total_steps=12"]


def weights_are_finite(run: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for _, tensor in newest(run).weights())


def bad_samples(text: str) -> list[list[tuple[int, int]]]:
    """The samples that each message about a bad step names."""
    return [
        [tuple(map(int, name.split(":"))) for name in found.split()]  # type: ignore[misc]
        for found in re.findall(r"samples epoch:number ((?:\d+:\d+ ?)+)", text)
    ]


@pytest.mark.parametrize("stage", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_nan_row_costs_its_step_and_is_named_with_its_rank(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, stage: int
) -> None:
    extra = [f"deepspeed.zero_optimization.stage={stage}", "run.log_samples=true"]
    code, _ = fork_server.run(command("good", *extra), 2, output=tmp_path)
    assert code == 0
    guilty = samples(tmp_path / "good")[3][5]
    plan = {"nan": [guilty]}
    code, text = fork_server.run(
        command("bad", *extra), 2, output=tmp_path, plans={0: plan, 1: plan}
    )
    assert code == 0, text
    (message,) = [line for line in text.splitlines() if "made no update" in line]
    assert "step 3 made no update: non-finite gradient; loss nan on rank " in message
    (named,) = bad_samples(message)
    assert guilty in named and len(named) == 2  # a micro batch
    rank = int(re.findall(r"on rank (\d)", message)[0])
    record = (tmp_path / "bad" / f"samples_rank_{rank:05d}.jsonl").read_text().splitlines()[2]
    assert f"[{guilty[0]}, {guilty[1]}]" in record
    lines = train_lines(tmp_path / "bad")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert lines[2]["grad_norm"] is None and 3 < lines[2]["loss"] < 5  # of the good micro batches
    assert losses(tmp_path / "bad")[:2] == losses(tmp_path / "good")[:2]
    assert weights_are_finite(tmp_path / "bad")
    assert newest(tmp_path / "bad").manifest["optimizer_steps"] == 5
    assert "NaN" not in (tmp_path / "bad" / "metrics.jsonl").read_text()


def test_an_overflow_leaves_weights_and_moments_as_they_were(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The loss is finite, the gradient is not, as when fp16 overflows in the backward pass."""
    code, text = fork_server.run(
        command("run", "checkpoint.every_steps=1", "checkpoint.keep_last=0"),
        output=tmp_path,
        plans={0: {"overflow": [4]}},
    )
    assert code == 0
    assert "step 4 made no update: non-finite gradient; every loss is finite; the highest" in text
    before, after = (
        {
            (name, kind): reader.read(name, kind, 0, torch.Size(shape).numel())
            for name, shape in reader.shapes.items()
            for kind in ("weight", "exp_avg", "exp_avg_sq")
        }
        for reader in (
            type(newest(tmp_path / "run"))(tmp_path / "run/checkpoints" / f"step_{step:08d}")
            for step in (3, 4)
        )
    )
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_learning_rate_of_a_million_stops_with_the_last_good_checkpoint_intact(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    wild = [
        "deepspeed.optimizer.params.lr=1e6",
        "schedule.total_steps=200",
        "schedule.warmup_steps=0",
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=0",
        "guard.max_bad_steps=3",
    ]
    code, text = fork_server.run(command("run", *wild), output=tmp_path)
    assert code == 1
    last = text.strip().splitlines()[-1]
    assert last.startswith("bertds: error: ") and "Traceback" not in text
    assert "3 consecutive steps made no update" in last or "is not finite" in last, last
    assert "lower the learning rate" in last.lower()
    assert saved_steps(tmp_path / "run") and weights_are_finite(tmp_path / "run")
    assert not (tmp_path / "run" / "DONE").exists()


def test_too_many_bad_steps_in_a_row_stop_all_ranks_with_the_samples_named(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    plan = {"overflow": [3, 5, 6, 7, 8]}
    ranks = fork_server.start(
        command(
            "run",
            "guard.max_bad_steps=3",
            "guard.peer_timeout_seconds=4",
            "schedule.total_steps=20",
            "checkpoint.every_steps=2",
        ),
        2,
        output=tmp_path,
        plans={0: plan, 1: plan},
    )
    assert ranks.wait() == [1, 1]
    message = ranks.text(0).splitlines()[-1]
    assert (
        "3 consecutive steps made no update (guard.max_bad_steps); the last one is step 7"
        in message
    )
    assert bad_samples(message)
    # Steps 4 and 6 are good to continue from: nothing bad was saved.
    assert saved_steps(tmp_path / "run") == [6, 4] and weights_are_finite(tmp_path / "run")


@pytest.mark.parametrize(
    "stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))]
)
def test_a_spike_is_held_back_at_every_stage(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, stage: int
) -> None:
    extra = [
        *SPIKY,
        f"deepspeed.zero_optimization.stage={stage}",
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=0",
    ]
    code, text = fork_server.run(
        command("run", *extra), output=tmp_path, plans={0: {"spike": {"9": 1e4}}}
    )
    assert code == 0, text
    assert re.search(
        r"step 9 made no update: gradient norm [\d.e+]+ exceeds [\d.]+, 6 standard deviations", text
    )
    assert [line["step"] for line in train_lines(tmp_path / "run") if line["skipped_steps"]] == [
        9,
        10,
        11,
        12,
    ]
    reader = type(newest(tmp_path / "run"))
    before, after = (
        dict(reader(tmp_path / "run/checkpoints" / f"step_{step:08d}").weights()) for step in (8, 9)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_resumed_run_detects_spikes_like_an_uninterrupted_one(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    plan = {"spike": {"7": 3.0, "9": 1e4}}
    lamb = "deepspeed.optimizer.type=Lamb"
    code, whole = fork_server.run(command("whole", *SPIKY, lamb), output=tmp_path, plans={0: plan})
    assert code == 0 and "step 9 made no update" in whole
    for stop in (2, 7, 8, 10, None):
        once = {**plan, **({"stop": stop} if stop else {})}
        code, text = fork_server.run(
            command("broken", *SPIKY, lamb), output=tmp_path, plans={0: once}
        )
        assert code == (75 if stop else 0), text
    assert "step 9 made no update" in (tmp_path / "broken" / "log.txt").read_text()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_state(tmp_path / "broken", tmp_path / "whole")


class Norms:
    """An engine that only has a norm."""

    rank = 0

    def __init__(self) -> None:
        self.norm = 1.0

    def gradient_norm(self) -> float:
        return self.norm


def test_the_spike_rule_by_hand() -> None:
    guard = Guard(GuardConfig(spike_sigmas=3, spike_window=4), Norms())
    state = TrainState()
    for norm in (9.0, 1.0, 2.0, 1.0):
        assert guard.norm_limit(state) == float("inf")  # waits for a whole window
        guard.engine.norm = norm
        guard.judge(state, None, True, float("inf"))
    guard.engine.norm = 2.0
    guard.judge(state, None, True, float("inf"))
    assert state.recent_norms == [1.0, 2.0, 1.0, 2.0]
    assert guard.norm_limit(state) == pytest.approx(1.5 + 3 * 0.5)
    state.recent_norms = [2.0] * 4
    assert guard.norm_limit(state) == pytest.approx(2.0 + 3 * 0.02)  # no spike from noise
    assert Guard(GuardConfig(), Norms()).norm_limit(state) == float("inf")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    from bertds.errors import BertdsError
    from tests.checkpoint.test_checkpoint import FakeEngine, make, save_steps

    for kind in ("weight", "exp_avg_sq"):
        for value in (float("nan"), float("inf")):
            engine = FakeEngine()
            checkpoints = make(tmp_path / kind / str(value), engine)
            (tmp_path / kind / str(value)).mkdir(parents=True)
            save_steps(checkpoints, 1)
            engine.full["a.weight", kind][7] = value
            with pytest.raises(BertdsError, match=f"not saved: {kind} a.weight contains a value"):
                save_steps(checkpoints, 2)
            assert [p.name for p in checkpoints.folder.iterdir() if p.name != "latest"] == [
                "step_00000001"
            ]
