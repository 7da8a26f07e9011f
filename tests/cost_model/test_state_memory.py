"""The bytes of every tensor that the engine keeps, against the memory model, per ZeRO stage."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import parameter_count
from bertds.cost_model.memory import estimate
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.engine.process_group import import_deepspeed
from bertds.model.build import build_model
from tests.gpu.small_bert import fp16_allowed, make_rows
from tests.support.plan_settings import shape_of

MODEL = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
WORDS = 1000
BUCKET = 70_000
"""In elements: more than the largest tensor has, less than the model."""
HOOKS = ("_release_ipg_buffers", "update_hp_grads", "independent_gradient_partition_epilogue")
"""What DeepSpeed calls at the end of a backward pass, when it holds most."""


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Leave everything that exists already out of the collections and counts."""
    import_deepspeed()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensor_bytes() -> int:
    """Return the bytes of all storages of tensors that are younger than the module's fixture."""
    gc.collect()
    # Gloo's threads hold the tensors of a collective operation a moment longer than it takes.
    time.sleep(0.02)
    storages: dict[int, int] = {}
    for tensor in [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]:
        for held in (tensor, tensor.grad if tensor.is_leaf else None):
            if held is not None and held.device.type != "meta":
                storage = held.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure(values: dict[str, Any], *, average: bool) -> tuple[float, float]:
    """Return the most bytes that are held in backward passes, and in the optimizer."""
    settings = check_deepspeed_values(values)
    # Held, so that none of them is freed while the others are counted.
    others = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    begin = tensor_bytes()
    engine = Engine.create(build_model(MODEL, WORDS), settings, settings.batch_plan(1), seed=1)
    if average:
        engine.keep_average()
    seen = {"backward": 0, "step": 0}

    def noted(kind: str, call: Callable[..., object]) -> Callable[..., object]:
        def noting(*arguments: object, **options: object) -> object:
            seen[kind] = max(seen[kind], tensor_bytes() - begin)
            return call(*arguments, **options)

        return noting

    wrapper = engine._engine.optimizer
    for hook in HOOKS:
        if hasattr(wrapper, hook):
            setattr(wrapper, hook, noted("backward", getattr(wrapper, hook)))
    engine._updates._update = noted("step", engine._updates._update)
    for _ in range(2):
        engine.forward_backward(make_rows(0, [16, 16]), mlm_scale=1.0, nsp_scale=1.0)
        seen["backward"] = max(seen["backward"], tensor_bytes() - begin)
    assert engine.step()
    del others
    return seen["backward"], seen["step"]


@pytest.mark.parametrize(
    ("precision", "stage", "more"),
    [
        ("fp32", 0, {}),
        ("fp32", 1, {}),
        ("fp32", 2, {}),
        ("fp32", 3, {}),
        ("bf16", 1, {}),
        ("bf16", 2, {}),
        ("bf16", 3, {}),
        ("fp16", 1, {}),
        ("fp16", 2, {}),
        ("fp16", 3, {}),
        ("fp16", 1, {"sums": 2}),
        ("fp16", 2, {"sums": 2}),
        ("bf16", 1, {"optimizer": "Lamb"}),
        ("bf16", 1, {"average": True}),
        ("bf16", 1, {"sums": 2}),
        ("bf16", 1, {"offload": True}),
        ("bf16", 2, {"offload": True}),
        ("bf16", 3, {"offload": True}),
        ("fp16", 1, {"offload": True}),
        ("fp16", 1, {"offload": True, "sums": 2}),
        ("fp32", 2, {"offload": True}),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, dict) else str(value),
)
@fp16_allowed()
def test_the_engine_holds_what_the_model_counts(
    precision: str, stage: int, more: dict[str, Any]
) -> None:
    optimizer = more.get("optimizer", "AdamW")
    offloaded = more.get("offload", False)
    values: dict[str, Any] = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": optimizer, "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET},
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision != "fp32":
        values[precision] = {"enabled": True}
    if precision == "fp16":
        values["fp16"]["initial_scale_power"] = 4
    if "sums" in more:
        values["data_types"] = {"grad_accum_dtype": precision}
    if offloaded:
        values["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    changes = {"precision": precision, "stage": stage, "bucket": BUCKET, "vocab_size": WORDS}
    # Activations that are smaller than the copy made in the step: the copy is what is counted.
    found = estimate(shape_of(MODEL, 1, **changes, **{**more, "tokens_per_row": 1e-3}))
    states = found.weights + found.gradients + found.optimizer
    backward, step = measure(values, average=more.get("average", False))
    count = parameter_count(MODEL, WORDS)
    print(f"{precision} {stage} {more}: {backward / count:.2f} {step / count:.2f}", found)
    in_float32 = precision in ("bf16", "fp16") and "sums" not in more
    copy = 0.0 if stage == 0 or (in_float32 and stage < 3) or offloaded else 4.0 * count
    # The float32 copy is made in the step, when stages 1 and 2 have released the bucket. Stage 2
    # also copies each micro batch's partition, in its own dtype.
    partition = found.gradients if stage == 2 and not in_float32 and not offloaded else 0.0
    kept = found.buffers if stage == 3 else 0.0
    assert max(backward, step) == pytest.approx(
        max(states + found.buffers + partition, states + kept + copy), rel=0.01
    )
