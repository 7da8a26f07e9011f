"""LAMB under fp16 and bf16: float32 masters that move as the textbook says.

The gradients that reach the optimizer are those of a half-precision model; what it makes of them
is as exact as in float32. A CPU trains in fp16 only because the test says that it can.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertds.engine.bf16_wrapper import _Accumulation
from bertds.engine.loss_scaling import LossScaling
from tests.gpu.small_bert import fp16_allowed
from tests.support import toy_engine
from tests.support.gradient_oracle import gradient
from tests.support.reference_training import LAMBS, train_reference
from tests.support.textbook_optimizers import TextbookLamb
from tests.support.toy_engine import (
    Toy,
    distance,
    gather_state,
    learning_rate,
    make_engine,
    rows_of,
    train,
    values,
)

STEPS = 8


def record_gradients(engine: Any) -> list[dict[str, torch.Tensor]]:
    """Note what the optimizer is given in each update, by tensor."""
    seen: list[dict[str, torch.Tensor]] = []
    updates, update = engine._updates, engine._updates._update

    def noting(*arguments: Any, **options: Any) -> Any:
        gradients = {}
        for partition in engine._layout.partitions:
            flat = partition.tensor.grad.detach().view(-1)
            for piece in partition.slices:
                gradients[piece.name] = flat[piece.offset : piece.offset + piece.length].clone()
        seen.append(gradients)
        return update(*arguments, **options)

    updates._update = noting
    return seen


@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
@pytest.mark.parametrize(
    ("stage", "precision"), [(1, "fp16"), (2, "fp16"), (3, "fp16"), (1, "bf16"), (3, "bf16")]
)
@fp16_allowed()
def test_the_masters_move_as_the_textbook_says(stage: int, precision: str, variant: str) -> None:
    json_values = values(stage, precision, "Lamb", params={"variant": variant})
    json_values["train_micro_batch_size_per_gpu"] = 24
    if precision == "fp16":
        # The first steps overflow until the scale has come down to where gradients are finite.
        json_values["fp16"].update(initial_scale_power=18, hysteresis=1)
    model = Toy()
    named = {n: p.detach().double().view(-1) for n, p in model.named_parameters() if n != "scale"}
    book = TextbookLamb(
        named,
        lr=0.0,
        betas=(0.9, 0.99),
        eps=1e-6,
        weight_decay=0.05,
        variant=variant,
        **LAMBS[variant],
    )
    engine = make_engine(json_values, model)
    gradients = record_gradients(engine)
    applied: list[bool] = []
    for step in range(STEPS):
        updates = len(gradients)
        applied += train(engine, step, step + 1)[1]
        assert len(gradients) == updates + applied[-1]  # an overflow never reaches the optimizer
        if applied[-1]:
            book.lr = learning_rate(step)
            book.step(gradients[-1])
    found = gather_state(engine)
    ratios, steps, scale = (
        engine._optimizer.trust_ratios(),
        engine.optimizer_steps(),
        engine.loss_scale(),
    )
    engine.close()
    assert 4 <= sum(applied) == steps and applied[-1]
    if precision == "fp16":
        assert False in applied and scale is not None and scale < 2.0**18
    assert distance(found, {(n, "weight"): w for n, w in book.named.items()}) < 1e-6
    assert distance(found, {(n, "exp_avg"): m for n, m in book.m.items()}, "exp_avg") < 1e-6
    assert ratios == pytest.approx(book.ratios, rel=1e-6)
    # The gradients themselves are unscaled and clipped: half precision of the true ones.
    assert all(0.0 < norm(g) <= 0.5 * 1.001 for g in gradients)


@pytest.mark.parametrize(("precision", "rounding"), [("fp16", 1e-3), ("bf16", 8e-3)])
@pytest.mark.parametrize("stage", [1, 2, 3])
@fp16_allowed()
def test_a_run_stays_within_its_rounding_of_float32(
    stage: int, precision: str, rounding: float
) -> None:
    json_values = values(stage, precision, "Lamb")
    json_values["train_micro_batch_size_per_gpu"] = 24
    if precision == "fp16":
        json_values["fp16"].update(initial_scale_power=8)
    engine = make_engine(json_values)
    losses, applied = train(engine, 0, 6)
    found = gather_state(engine)
    engine.close()
    want, want_losses, _, _ = train_reference(6, "nvidia")
    assert all(applied)
    assert 0.0 < distance(found, want) < rounding
    assert losses == pytest.approx(want_losses, rel=rounding)


@pytest.mark.parametrize(("stage", "offload"), [(1, "none"), (2, "cpu")])
@fp16_allowed()
def test_the_sum_of_many_micro_batches_is_not_rounded_to_fp16(
    stage: int, offload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed in fp16, the gradient of 384 micro batches is off by 5e-3."""
    rows = 384
    monkeypatch.setattr(toy_engine, "ROWS", rows)
    zero = {"offload_optimizer": {"device": offload}}
    json_values = values(stage, "fp16", "Lamb", gradient_clipping=0.0, zero=zero)
    json_values["train_batch_size"] = rows
    json_values["train_micro_batch_size_per_gpu"] = 1
    json_values["fp16"]["initial_scale_power"] = 8
    engine = make_engine(json_values)
    gradients = record_gradients(engine)
    assert train(engine, 0, 1)[1] == [True]
    engine.close()
    batch = rows_of(0, 0, rows)
    want = gradient(Toy().double(), batch, len(batch.masked_lm_ids))
    far = max(float((gradients[0][n].double() - w).norm() / w.norm()) for n, w in want.items())
    assert far < 1.5e-3


def norm(gradients: dict[str, torch.Tensor]) -> float:
    return float(torch.cat(list(gradients.values())).double().norm())


def test_sums_of_bf16_begin_at_zero_in_each_step() -> None:
    """Also those of a parameter that has no gradient, or one only in a later micro batch."""
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)) for _ in range(2)]
    sums = [torch.full((2,), float("nan")) for _ in parameters]
    wrapper = SimpleNamespace(
        bf16_groups=[parameters],
        fp32_groups_gradients=[sums],
        fp32_groups_has_gradients=[[False, False]],
    )
    accumulate = _Accumulation(wrapper)
    found = []
    for step in ([(1, 2), (3, 4)], [(5, None), (6, None)], [(7, None), (8, 9)]):
        for values_ in step:
            for parameter, value in zip(parameters, values_, strict=True):
                if value is not None:
                    parameter.grad = torch.full((2,), value, dtype=torch.bfloat16)
            accumulate()
        found.append(([s.tolist() for s in sums], list(wrapper.fp32_groups_has_gradients[0])))
        accumulate.begin_step()
    assert found == [
        ([[4.0, 4.0], [6.0, 6.0]], [True, True]),
        ([[11.0, 11.0], [0.0, 0.0]], [True, False]),
        ([[15.0, 15.0], [9.0, 9.0]], [True, True]),
    ]


@pytest.mark.parametrize("clipping", [0.0, 0.5])
@pytest.mark.parametrize("stage", [1, 2, 3])
@fp16_allowed()
def test_a_step_that_doubles_the_loss_scale_uses_the_whole_gradient(
    stage: int, clipping: float
) -> None:
    """DeepSpeed divides by the new scale, and the optimizer gets half the gradient."""
    found = []
    for window in (2, 1000):
        json_values = values(stage, "fp16", "Lamb", gradient_clipping=clipping)
        json_values["train_micro_batch_size_per_gpu"] = 24
        json_values["fp16"].update(initial_scale_power=8, loss_scale_window=window)
        engine = make_engine(json_values)
        gradients, norms = record_gradients(engine), []
        for step in range(3):
            train(engine, step, step + 1)
            norms.append(engine.gradient_norm())
        found.append((gradients[-1], norms))
        assert engine.loss_scale() == (2.0**9 if window == 2 else 2.0**8)
        engine.close()
    (grown, norms), (constant, other_norms) = found
    assert all(torch.equal(grown[name], constant[name]) for name in constant)
    assert norms == other_norms


@pytest.mark.parametrize("stage", [1, 2, 3])
@fp16_allowed()
def test_an_overflow_at_the_lowest_scale_is_a_fault_and_no_exception(stage: int) -> None:
    json_values = values(stage, "fp16")
    json_values["train_micro_batch_size_per_gpu"] = 12
    json_values["fp16"].update(initial_scale_power=9, min_loss_scale=2**8)
    engine = make_engine(json_values)
    found = []
    for step in range(5):  # DeepSpeed tolerates the first overflow
        bad = train(engine, step, step + 1, poison=lambda step, micro, rank: micro == 0)[1]
        found.append((bad, engine.loss_scale(), engine.searching_loss_scale()))
    good = train(engine, 5, 6)[1]
    engine.close()
    assert found == [
        ([False], 2.0**9, True),
        ([False], 2.0**8, True),  # it overflowed at 2 ** 9: the lowest scale is yet to be tried
        *[([False], 2.0**8, False)] * 3,
    ]
    assert good == [True]


@pytest.fixture
def new_scaler(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """DeepSpeed's dynamic loss scaler: it tolerates one overflow, and grows after 3 good steps."""
    from deepspeed.runtime.fp16 import loss_scaler

    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 0)
    return lambda: loss_scaler.DynamicLossScaler(2.0**16, 3, 2.0**14, 2, False, False)


def scaling_of(scaler: Any) -> LossScaling:
    return LossScaling(SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler)), "fp16")


def test_a_resumed_loss_scale_moves_as_an_uninterrupted_one(new_scaler) -> None:
    overflows = [True, False, True, True, *[False] * 4, True, True, *[False] * 5]
    whole, want = new_scaler(), []
    for overflow in overflows:
        whole.update_scale(overflow)
        want.append(whole.cur_scale)
    assert len(set(want)) > 2
    for stop in range(len(overflows)):
        first, second = new_scaler(), new_scaler()
        for overflow in overflows[:stop]:
            first.update_scale(overflow)
        scaling_of(second).set_numbers(json.loads(json.dumps(scaling_of(first).numbers())))
        found = []
        for overflow in overflows[stop:]:
            second.update_scale(overflow)
            found.append(second.cur_scale)
        assert found == want[stop:], stop
