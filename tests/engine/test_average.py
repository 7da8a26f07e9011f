"""The moving average of the weights: the textbook's at every ZeRO stage, bit-equal on resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertds.engine.deepspeed_engine import Engine
from bertds.engine.weight_average import decay_at
from tests.support.averaging import DECAY, state_of, train_averaged
from tests.support.engine_worker import run
from tests.support.fork_server import ForkServer
from tests.support.toy_engine import State, Toy, make_engine, reader, same, values

STEPS = 6


def textbook(begin: State, states: list[State]) -> dict[str, torch.Tensor]:
    """The average of the weights that the states went through, in float64."""
    names = [name for name, kind in begin if kind == "average"]
    average = {name: begin[name, "weight"].double() for name in names}
    for step, state in enumerate(states):
        decay = min(DECAY, (1 + step) / (10 + step))
        for name in names:
            average[name] = decay * average[name] + (1 - decay) * state[name, "weight"].double()
    return average


def check(begin: State, states: list[State]) -> None:
    for name, want in textbook(begin, states).items():
        found = states[-1][name, "average"].double()
        torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
        assert not torch.equal(states[-1][name, "average"], states[-1][name, "weight"])


def one_process(stage: int, precision: str = "fp32", seed: int = 0) -> Engine:
    json_values = values(stage, precision)
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values, Toy(seed=seed))
    engine.keep_average()
    return engine


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (1, "bf16"), (3, "fp32")]
)
def test_one_process_averages_like_the_textbook(stage: int, precision: str) -> None:
    engine = one_process(stage, precision)
    begin = state_of(engine)
    assert all(torch.equal(begin[n, "weight"], t) for (n, k), t in begin.items() if k == "average")
    states = train_averaged(engine, 0, STEPS)
    engine.close()
    check(begin, states)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "bf16"), (3, "fp32")])
def test_it_is_swapped_in_for_evaluation_and_swapped_back(stage: int, precision: str) -> None:
    engine = one_process(stage, precision)
    train_averaged(engine, 0, 3)
    before = state_of(engine)
    with engine.averaged():
        inside = state_of(engine)
    assert same(state_of(engine), before)
    for (name, kind), tensor in before.items():
        if kind == "average":
            assert torch.equal(inside[name, "weight"], tensor)
            assert torch.equal(inside[name, "average"], before[name, "weight"])
    # Training that is interrupted so continues as if it had not been.
    after = train_averaged(engine, 3, 5)[-1]
    engine.close()
    other = one_process(stage, precision)
    assert same(train_averaged(other, 0, 5)[-1], after)
    other.close()


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (3, "fp32")])
def test_a_resumed_average_equals_an_uninterrupted_one_bit_for_bit(
    stage: int, precision: str
) -> None:
    engine = one_process(stage, precision)
    middle = train_averaged(engine, 0, 3)[-1]
    end = train_averaged(engine, 3, STEPS)[-1]
    engine.close()
    again = one_process(stage, precision, seed=99)
    again.load_pieces(reader(middle), optimizer_steps=3, moments=True, averaged=True)
    assert same(train_averaged(again, 3, STEPS)[-1], end)
    # A start that brings no average begins it with the weights that it brings.
    again.load_pieces(reader(middle), optimizer_steps=3, moments=True)
    fresh = state_of(again)
    assert all(torch.equal(fresh[n, "weight"], t) for (n, k), t in fresh.items() if k == "average")
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_divided_over_ranks_it_equals_the_textbook(
    fork_server: ForkServer, world_size: int, tmp_path: Path
) -> None:
    cases = []
    for stage in range(4):
        json_values = values(stage)
        json_values["train_micro_batch_size_per_gpu"] = 4
        cases.append(
            {"name": f"average{stage}", "values": json_values, "average": True, "last": STEPS}
        )
    found = run(fork_server, world_size, cases, tmp_path)
    for case in cases:
        states = found[case["name"]]["states"]
        check(states[0], states[1:])


def test_the_decay_grows_to_its_value() -> None:
    assert decay_at(0.999, 0) == 0.1 and decay_at(0.999, 90) == 0.91
    assert decay_at(0.5, 90) == 0.5
