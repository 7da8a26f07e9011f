"""Muon under every ZeRO stage: one process's, on whole matrices, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engine_worker import run
from tests.support.fork_server import ForkServer
from tests.support.reference_training import train_reference
from tests.support.toy_engine import (
    Toy,
    distance,
    gather_state,
    make_engine,
    reader,
    same,
    train,
    values,
)

STEPS = 20
CPU = {"device": "cpu", "pin_memory": False}


def check(found: dict) -> None:
    want, losses, _, _ = train_reference(STEPS, "Muon")
    assert distance(found["state"], want) < 1e-6
    assert distance(found["state"], want, "exp_avg") < 1e-5
    assert found["losses"] == pytest.approx(losses, rel=2e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_process_equals_the_textbook(stage: int) -> None:
    json_values = values(stage, optimizer="Muon")
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    losses, _ = train(engine, 0, STEPS)
    state, said = gather_state(engine), engine.describe()
    engine.close()
    check({"state": state, "losses": losses})
    assert said.startswith(f"Muon, ZeRO stage {stage}")
    # AdamW alone goes elsewhere.
    assert distance(state, train_reference(STEPS, "AdamW")[0]) > 0.01


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (1, "bf16"), (3, "bf16")])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stage: int, precision: str) -> None:
    json_values = values(stage, precision, "Muon")
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    train(engine, 0, 3)
    middle = gather_state(engine)
    losses, _ = train(engine, 3, 6)
    end = gather_state(engine)
    engine.close()
    again = make_engine(json_values, Toy(seed=99))
    again.load_pieces(reader(middle), optimizer_steps=3, moments=True)
    assert train(again, 3, 6)[0] == losses
    assert same(gather_state(again), end)
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_matrices_divided_over_ranks_equal_the_textbook(
    fork_server: ForkServer, world_size: int, tmp_path: Path
) -> None:
    """At stages 1 and 2 an edge cuts a matrix, at 3 all are cut; sub-groups and offload too."""
    zeros = [(stage, {}) for stage in range(4)]
    zeros += [
        (3, {"sub_group_size": 700}),
        (2, {"offload_optimizer": CPU}),
        (3, {"offload_optimizer": CPU, "offload_param": CPU}),
    ]
    cases = []
    for number, (stage, zero) in enumerate(zeros):
        json_values = values(stage, optimizer="Muon", zero=zero)
        json_values["train_micro_batch_size_per_gpu"] = 4
        cases.append({"name": f"muon{number}", "values": json_values, "last": STEPS})
    found = run(fork_server, world_size, cases, tmp_path)
    for case in cases:
        check(found[case["name"]])
