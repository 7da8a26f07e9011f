"""Trains the small stand-in with a moving average of its weights."""

from __future__ import annotations

from typing import Any

from bertds.engine.deepspeed_engine import Engine
from bertds.engine.weight_average import decay_at
from tests.support.toy_engine import State, make_engine, merge, parameter_sizes, shares, train

DECAY = 0.7


def state_of(engine: Engine) -> State:
    return merge(engine.gather_objects(shares(engine)), parameter_sizes(engine), average=True)


def train_averaged(engine: Engine, first: int, last: int) -> list[State]:
    """Train, updating the average after each step as a run does; returns each step's state."""
    states = []
    for step in range(first, last):
        train(engine, step, step + 1)
        engine.update_average(decay_at(DECAY, step))
        states.append(state_of(engine))
    return states


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the state at the beginning and after each step."""
    engine = make_engine(case["values"])
    engine.keep_average()
    states = [state_of(engine), *train_averaged(engine, 0, case["last"])]
    engine.close()
    return {"states": states}
