"""What the engine adds to a micro batch: few operators, whatever the number of parameters."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertds.engine import wrap
from bertds.engine.bf16_wrapper import use_exact_norms
from tests.support.toy_engine import make_engine, rows_of, train, values


class Operators(TorchDispatchMode):
    """Counts what is dispatched but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not (function.is_view or function is torch.ops.aten.detach.default):
            self.counts[str(function)] += 1
        return function(*arguments, **(options or {}))


def operators_of_the_engine(stage: int, precision: str) -> int:
    """Operators of a micro batch's forward and backward under the engine, less the model's."""
    engine = make_engine(values(stage, precision, gradient_accumulation_steps=12))
    train(engine, 0, 1)
    batch = rows_of(1, 0, 2)
    engine.forward_backward(batch, mlm_scale=1.0, nsp_scale=1.0)
    with Operators() as whole:
        engine.forward_backward(batch, mlm_scale=1.0, nsp_scale=1.0)
    module = engine._engine.module
    arguments = batch.model_inputs()
    for parameter in module.parameters():
        parameter.grad = None
    with Operators() as alone:
        output = module(**arguments)
        (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    engine.close()
    return (whole.counts - alone.counts).total()


def test_gradients_in_bf16_are_added_up_in_one_call() -> None:
    """DeepSpeed's way is three operators per parameter, more than BERT-large has itself."""
    assert operators_of_the_engine(1, "bf16") <= 10


def test_the_sums_are_deepspeeds_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for ours in (True, False):
        if not ours:
            # The norm stays ours: DeepSpeed's is less exact.
            monkeypatch.setattr(wrap, "work_on_all_tensors", lambda engine: use_exact_norms())
        # In bf16 DeepSpeed would round the sums of one process too, which sends nothing.
        engine = make_engine(values(1, "bf16", communication_data_type="fp32"))
        assert hasattr(engine._engine.optimizer, "update_hp_grads")  # the wrapper meant here
        # One step is skipped for a gradient that is not finite: its sums must be gone after it.
        losses, applied = train(engine, 0, 5, poison=lambda step, micro_step, rank: step == 2)
        assert applied == [True, True, False, True, True]
        weights = [p.detach().clone() for p in engine._engine.module.parameters()]
        results.append((losses, weights, engine.gradient_norm()))
        engine.close()
    (losses, weights, norm), (their_losses, their_weights, their_norm) = results
    assert losses == their_losses and norm == their_norm
    assert all(map(torch.equal, weights, their_weights))
