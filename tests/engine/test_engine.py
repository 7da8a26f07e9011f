"""The engine on one rank: arithmetic, state, skipped steps, precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import BertdsError, ConfigError
from tests.gpu.small_bert import fp16_allowed
from tests.support.reference_training import train_reference
from tests.support.toy_engine import (
    ROWS,
    Toy,
    distance,
    gather_state,
    make_engine,
    parameter_sizes,
    reader,
    rows_of,
    same,
    train,
    values,
)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
def test_adam_is_torchs(stage: int, optimizer: str) -> None:
    params = {"adam_w_mode": False} if optimizer == "Adam" else {}
    json_values = values(stage, optimizer=optimizer, params=params)
    json_values["train_micro_batch_size_per_gpu"] = 8
    engine = make_engine(json_values)
    losses, applied = train(engine, 0, 12)
    state, norm = gather_state(engine), engine.gradient_norm()
    engine.close()
    want, want_losses, _, norms = train_reference(12, optimizer)
    assert all(applied)
    assert distance(state, want) < 2e-6
    assert losses == pytest.approx(want_losses, rel=2e-6)
    assert norm == pytest.approx(norms[-1], rel=1e-5)
    assert engine.trust_ratios() == {}


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("micro_batch", [1, 6, 24])
def test_the_micro_batch_changes_nothing(stage: int, micro_batch: int) -> None:
    json_values = values(stage, optimizer="Lamb")
    json_values["train_micro_batch_size_per_gpu"] = micro_batch
    engine = make_engine(json_values)
    assert engine.batch.gradient_accumulation_steps == ROWS // micro_batch
    losses, _ = train(engine, 0, 5)
    state = gather_state(engine)
    engine.close()
    want, want_losses, _, _ = train_reference(5, "nvidia")
    assert losses == pytest.approx(want_losses, rel=1e-6)
    assert distance(state, want) < 1e-6


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e9])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_clipping_is_torchs(stage: int, clip: float) -> None:
    # A large eps: LAMB and Adam would otherwise not notice the size of the gradient.
    engine = make_engine(values(stage, params={"eps": 0.01}, gradient_clipping=clip))
    train(engine, 0, 3)
    state = gather_state(engine)
    engine.close()
    want = train_reference(3, "AdamW", clip=clip, eps=0.01)[0]
    # DeepSpeed divides by (norm + 1e-6) / limit
    assert distance(state, want) < 1e-6
    assert distance(state, want, "exp_avg") < 3e-6


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (3, "fp32"),
        (1, "bf16"),
        (2, "bf16"),
        (3, "bf16"),
        (1, "autocast"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stage: int, precision: str, optimizer: str
) -> None:
    json_values = values(stage, precision, optimizer)
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    losses, _ = train(engine, 0, 3)
    middle, steps = gather_state(engine), engine.optimizer_steps()
    losses += train(engine, 3, 6)[0]
    end = gather_state(engine)
    engine.close()
    assert steps == 3

    again = make_engine(json_values, Toy(seed=99))
    again.load_pieces(reader(middle), optimizer_steps=steps, moments=True)
    assert same(gather_state(again), middle)
    assert train(again, 3, 6)[0] == losses[3:]
    assert same(gather_state(again), end)
    again.close()


def test_moments_exist_from_the_start_and_can_be_left_behind() -> None:
    engine = make_engine(values(2, optimizer="Lamb"))
    before = gather_state(engine)
    assert engine.optimizer_steps() == 0
    assert not any(part.any() for (_, kind), part in before.items() if kind != "weight")
    train(engine, 0, 2)
    trained = gather_state(engine)
    # A phase hand-over: weights and moments, the counter again ...
    engine.load_pieces(reader(trained), optimizer_steps=0, moments=True)
    assert engine.optimizer_steps() == 0
    assert same(gather_state(engine), trained)
    # ... or the weights alone.
    engine.load_pieces(reader(trained), optimizer_steps=2, moments=False)
    assert engine.optimizer_steps() == 0
    state = gather_state(engine)
    assert not any(part.any() for (_, kind), part in state.items() if kind != "weight")
    assert torch.equal(state["dense.weight", "weight"], trained["dense.weight", "weight"])
    engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_masters_are_the_exact_weights(stage: int) -> None:
    model = Toy()
    exact = {name: p.detach().clone().view(-1) for name, p in model.named_parameters()}
    engine = make_engine(values(stage, "bf16"), model)
    state = gather_state(engine)
    for name, want in exact.items():
        if name != "scale":
            assert torch.equal(state[name, "weight"], want)
    if stage < 3:
        rounded = dict(model.named_parameters())["dense.weight"]
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded.detach().view(-1), exact["dense.weight"].bfloat16())
    engine.close()


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
)
def test_a_nan_never_reaches_the_weights(stage: int, precision: str, optimizer: str) -> None:
    json_values = values(stage, precision, optimizer)
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    train(engine, 0, 2)
    before, steps = gather_state(engine), engine.optimizer_steps()
    _, applied = train(engine, 2, 3, poison=lambda step, micro_step, rank: micro_step == 0)
    assert applied == [False]
    assert engine.gradient_norm() == float("inf")
    assert same(gather_state(engine), before)
    assert engine.optimizer_steps() == steps
    # The next micro batch is the first of two, not the last one.
    assert not engine._engine.is_gradient_accumulation_boundary()
    losses, applied = train(engine, 3, 4)
    assert applied == [True] and losses[0] < 1e3
    engine.close()


def test_one_gradient_for_a_tied_matrix_and_none_for_a_frozen_one() -> None:
    engine = make_engine(values(1, optimizer="Lamb"))
    assert "decoder.weight" not in parameter_sizes(engine)
    assert parameter_sizes(engine)["scale"] == 35
    train(engine, 0, 2)
    state = gather_state(engine)
    assert torch.equal(state["scale", "weight"], torch.full((35,), 1.25))
    module = engine._engine.module
    assert module.decoder.weight is module.embeddings.weight
    engine.close()


def test_dropout_depends_on_seed_step_and_micro_step_alone() -> None:
    engine = make_engine(values())

    def draw(*numbers: int) -> list[float]:
        engine.seed_dropout(*numbers)
        return torch.rand(4).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    seen = {tuple(draw(*n)) for n in [(1, 2, 3), (2, 1, 3), (1, 3, 2), (0, 0, 0), (1, 2, 4)]}
    assert len(seen) == 5
    engine.rank = 1
    assert tuple(draw(1, 2, 3)) not in seen
    engine.close()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("micro_step", [0, 11])
def test_an_offloaded_optimizer_recovers_from_a_bad_gradient(stage: int, micro_step: int) -> None:
    """DeepSpeed keeps the bad sum in float32, and every later step is bad too."""
    offload = {"offload_optimizer": {"device": "cpu"}}
    engine = make_engine(values(stage, "bf16", "Lamb", zero=offload))
    bad = train(engine, 0, 3, poison=lambda step, micro, _: (step, micro) == (1, micro_step))[1]
    state = gather_state(engine)
    engine.close()
    assert bad == [True, False, True]
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_evaluation_leaves_no_trace() -> None:
    engine = make_engine(values(3))
    train(engine, 0, 1)
    before = gather_state(engine)
    output = engine.eval_forward(rows_of(0, 0, 24))
    assert not output.mlm_loss_sum.requires_grad and not engine._engine.module.training
    assert same(gather_state(engine), before)
    assert train(engine, 1, 2)[1] == [True]
    assert engine._engine.module.training
    engine.close()


def test_steps_and_micro_batches_are_counted() -> None:
    engine = make_engine(values())
    engine.forward_backward(rows_of(0, 0, 2), mlm_scale=1.0, nsp_scale=1.0)
    with pytest.raises(BertdsError, match="before all 12 micro batches"):
        engine.step()
    engine.close()


def test_a_plan_for_other_processes_is_refused() -> None:
    settings = check_deepspeed_values(values())
    with pytest.raises(BertdsError, match="2 processes, but the world size is 1"):
        Engine.create(Toy(), settings, settings.batch_plan(2), seed=0)


def test_fp16_is_refused_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some CPUs have it (AMX-FP16, AVX512-FP16): there DeepSpeed trains with it."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match="does not support training in fp16; use bf16"):
        make_engine(values(1, "fp16"))


@pytest.mark.parametrize("stage", [1, 2, 3])
@fp16_allowed()
def test_fp16_overflow_is_skipped_and_the_scale_is_state(stage: int) -> None:
    """On a CPU only because the test says that it can: the loss scaler is the same."""
    json_values = values(stage, optimizer="Lamb")
    json_values["fp16"] = {"enabled": True, "initial_scale_power": 40, "hysteresis": 1}
    json_values["train_micro_batch_size_per_gpu"] = 24
    engine = make_engine(json_values)
    start = gather_state(engine)
    assert engine.loss_scale() == 2.0**40
    assert engine.searching_loss_scale()
    _, applied = train(engine, 0, 3)
    assert applied == [False] * 3
    assert engine.loss_scale() == 2.0**37
    assert same(gather_state(engine), start)
    saved = engine.extra_state()
    engine.load_extra_state({**saved, "cur_scale": 2.0**7})
    _, applied = train(engine, 3, 5)
    assert applied == [True, True]
    middle, saved = gather_state(engine), engine.extra_state()
    losses, _ = train(engine, 5, 7)
    engine.close()

    again = make_engine(json_values)
    again.load_pieces(reader(middle), optimizer_steps=2, moments=True)
    again.load_extra_state(saved)
    assert again.extra_state() == saved
    assert train(again, 5, 7)[0] == losses
    again.close()


def test_offloaded_adam_without_a_compiler_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    with pytest.raises(BertdsError, match="zero_force_ds_cpu_optimizer=false"):
        make_engine(values(1, zero=offload))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_adam_on_torchs_own(stage: int) -> None:
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    json_values = values(stage, zero=offload, zero_force_ds_cpu_optimizer=False)
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    train(engine, 0, 4)
    state = gather_state(engine)
    engine.close()
    assert distance(state, train_reference(4, "AdamW")[0]) < 2e-6


def test_the_naive_way_is_wrong() -> None:
    """One trust ratio for the whole flat vector, as a stock LAMB would see it under ZeRO."""
    from bertds.optim.partition import Partition, Slice

    engine = make_engine(values(1, optimizer="Lamb", params={"variant": "paper"}))
    partition = engine._layout.partitions[0]
    whole = [Slice("dense.weight", 0, 0, partition.tensor.numel())]
    engine._optimizer.bind([Partition(tensor=partition.tensor, slices=whole)], ["dense.weight"])
    train(engine, 0, 10)
    state = gather_state(engine)
    engine.close()
    start = {(n, "weight"): p.detach().view(-1) for n, p in Toy().named_parameters()}
    want = train_reference(10, "paper")[0]
    key = ("dense.weight", "weight")
    moved = float((want[key] - start[key]).norm())
    error = float((state[key] - want[key]).norm())
    assert error > 0.1 * moved
    exact = make_engine(values(1, optimizer="Lamb", params={"variant": "paper"}))
    train(exact, 0, 10)
    assert float((gather_state(exact)[key] - want[key]).norm()) < 1e-5 * moved
    exact.close()


class _FakeFusedAdam:
    """DeepSpeed's CUDA kernel in torch: its Python side, which keeps the steps, is the real one."""

    def load(self) -> _FakeFusedAdam:
        return self

    @staticmethod
    def multi_tensor_adam(chunk, overflow, lists, lr, b1, b2, eps, step, mode, correct, decay):
        assert mode == 1 and correct == 1
        for g, p, m, v in zip(*lists, strict=True):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
            p.sub_(lr * (update + decay * p))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fused_adam_of_the_gpu_resumes_bit_for_bit(
    stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.ops.adam import fused_adam

    from bertds.engine import build_optimizer, wrap

    monkeypatch.setattr(fused_adam, "FusedAdamBuilder", _FakeFusedAdam)
    real = build_optimizer.build_optimizer

    def build(model: torch.nn.Module, settings: Any, device: torch.device) -> Any:
        return real(model, settings, SimpleNamespace(type="cuda"))

    monkeypatch.setattr(wrap, "build_optimizer", build)
    check_resume(values(stage), "FusedAdam", bitwise=True)


def check_resume(json_values: dict, kind: str, *, bitwise: bool) -> None:
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    assert type(engine._optimizer).__name__.endswith(kind)
    losses, _ = train(engine, 0, 3)
    middle = gather_state(engine)
    losses += train(engine, 3, 6)[0]
    end = gather_state(engine)
    assert engine.optimizer_steps() == 6
    engine.close()
    assert distance(end, train_reference(6, "AdamW")[0]) < 5e-6
    again = make_engine(json_values)
    again.load_pieces(reader(middle), optimizer_steps=3, moments=True)
    resumed, state = train(again, 3, 6)[0], gather_state(again)
    again.close()
    if bitwise:
        assert resumed == losses[3:]
        assert same(state, end)
    else:
        assert resumed == pytest.approx(losses[3:], rel=1e-6)
        assert distance(state, end) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")), reason="needs a C++ compiler and ninja"
)
def test_deepspeeds_cpu_adam_resumes_to_rounding() -> None:
    """Its C++ side carries products of the betas along, in float32, from step to step."""
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    check_resume(values(2, zero=offload), "CPUAdam", bitwise=False)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lamb_goes_through_deepspeeds_own_checkpoints(stage: int, tmp_path: Path) -> None:
    """We do not use them, but someone may."""
    json_values = values(stage, optimizer="Lamb")
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    train(engine, 0, 3)
    engine._engine.save_checkpoint(str(tmp_path), tag="three")
    losses, _ = train(engine, 3, 6)
    end = gather_state(engine)
    engine.close()
    again = make_engine(json_values, Toy(seed=5))
    again._engine.load_checkpoint(str(tmp_path), tag="three")
    assert again.optimizer_steps() == 3
    assert train(again, 3, 6)[0] == losses
    assert same(gather_state(again), end)
    again.close()
