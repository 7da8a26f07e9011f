"""What a layer keeps for its backward pass, and what ZeRO shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import parameter_count
from bertds.cost_model.memory import (
    CHUNK_BYTES,
    Memory,
    activations,
    estimate,
    layer_bytes,
    mean_square,
)
from bertds.model import losses
from tests.support.plan_settings import LARGE, shape_of


@pytest.mark.parametrize("style", ["bert", "modern"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("rows", [4, 12])
def test_a_layer_keeps_what_autograd_saves(dropout: float, rows: int, style: Any) -> None:
    """The difference between five layers and two, by hooks on every saved tensor."""
    import torch

    from bertds.model.build import build_model

    def saved(layers: int) -> tuple[int, ModelConfig]:
        config = ModelConfig(
            hidden_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=512,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            style=style,
            next_sentence=style == "bert",
            local_attention=16,
        )
        torch.manual_seed(0)
        model = build_model(config, 1024).train()
        ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, tuple[int, torch.Tensor]] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        tokens = rows * 64
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(
                torch.randint(5, 1024, (tokens,)),
                torch.zeros(tokens, dtype=torch.long),
                torch.arange(64).repeat(rows),
                torch.arange(0, tokens + 1, 64, dtype=torch.int32),
                64,
                torch.arange(0, tokens, 7),
                torch.randint(5, 1024, (-(-tokens // 7),)),
                torch.zeros(rows, dtype=torch.long),
            )
        assert output.mlm_loss_sum.requires_grad
        return sum(size for size, _ in seen.values()), config

    (five, _), (two, config) = saved(5), saved(2)
    assert layer_bytes(shape_of(config, rows)) == pytest.approx((five - two) / 3, rel=0.03)


def test_zero_divides_what_its_stage_divides() -> None:
    count = parameter_count(LARGE, 30522)
    plans = {
        stage: estimate(
            shape_of(LARGE, 8, vocab_size=30522, precision="bf16", stage=stage, world_size=8)
        )
        for stage in (1, 2, 3)
    }
    assert plans[1].optimizer == pytest.approx(12 * count / 8)  # masters and both moments, fp32
    assert plans[1].weights == 2 * count and plans[3].weights == pytest.approx(2 * count / 8)
    assert plans[1].gradients > plans[2].gradients
    assert plans[1].total > plans[2].total
    # Stage 3 brings the weights together again: DeepSpeed lets a billion of them stay.
    assert plans[3].buffers - plans[2].buffers == pytest.approx(2 * count)


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer"),
    [
        ("fp32", 0, 4, 4, 8),  # the weights are the masters
        ("fp32", 1, 4, 4, 12 / 8),
        ("fp32", 2, 4, 4 / 8, 12 / 8),
        ("bf16", 0, 2, 2 + 4, 12),  # gradients of a micro batch, and their sums in float32
        ("bf16", 1, 2, 2 + 4, 12 / 8),
        ("bf16", 2, 2, 4 / 8, 12 / 8),
        ("fp16", 2, 2, 4 / 8, 12 / 8),
        ("bf16", 3, 2 / 8, 4 / 8, 12 / 8),
    ],
)
def test_bytes_per_parameter_are_those_of_the_zero_paper(
    precision: str, stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    """arXiv:1910.02054, section 3 and figure 1, on 8 processes; gradients are summed in float32."""
    count = parameter_count(LARGE, 1024)

    def plan(**changes: object) -> Memory:
        changes = {"precision": precision, "stage": stage, "world_size": 8, **changes}
        return estimate(shape_of(LARGE, 8, **{"on_cpu": False, **changes}))

    found = plan()
    per_parameter = (found.weights / count, found.gradients / count, found.optimizer / count)
    assert per_parameter == pytest.approx((weights, gradients, optimizer))
    average = plan(average=True).optimizer - found.optimizer
    assert average / count == pytest.approx(4 / (8 if stage else 1))
    assert plan(offload=True).optimizer == 0.0
    # A bucket of gradients in transfer: torch.empty(reduce_bucket_size) in DeepSpeed 0.19.8, of
    # which a CPU has only the pages that are written. Its wrapper for bf16 at stage 1 has none.
    size = 4 if precision == "fp32" else 2
    gathered = size * count if stage == 3 else 0
    has_bucket = stage and (precision, stage) != ("bf16", 1)
    for bucket in (1000, 10**12):
        for on_cpu, held in ((False, bucket), (True, min(bucket, count))):
            buffers = plan(bucket=bucket, on_cpu=on_cpu).buffers
            assert buffers == pytest.approx(gathered + size * held if has_bucket else 0.0)
    # overlap_comm needs a second one, except at stage 3, where DeepSpeed has one bucket.
    twice = plan(bucket=1000, overlap=True).buffers - plan(bucket=1000).buffers
    assert twice == (1000 * size if has_bucket and stage < 3 else 0.0)


def test_a_step_and_a_backward_pass_are_not_at_the_same_time() -> None:
    """The step needs a float32 copy of the gradients, the pass its activations: the larger."""
    small, large = shape_of(LARGE, 1), shape_of(LARGE, 512)
    assert activations(small) < estimate(small).activations == 4 * parameter_count(LARGE, 1024)
    assert estimate(large).activations == activations(large) > 4 * parameter_count(LARGE, 1024)


def test_squares_of_row_lengths_are_between_those_of_equal_rows_and_of_full_and_empty_ones() -> (
    None
):
    assert mean_square(shape_of(LARGE, 1)) == 64.0**2
    ragged = shape_of(LARGE, 1, tokens_per_row=48.0)
    assert 48.0**2 < mean_square(ragged) < 48.0 * 64.0


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    assert CHUNK_BYTES == {True: losses.CHUNK_BYTES, False: losses.GPU_CHUNK_BYTES}
