"""Queries', keys' and values' weights are joined without a copy where ZeRO lays them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.data.loader import BatchLoader
from bertds.data.sources.open import open_source
from bertds.engine import build_optimizer
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model import attention
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    attention_kernel="padded",
)


@pytest.fixture(scope="module")
def micro_batches(tiny_data):
    config = DataConfig(path=str(tiny_data), sequence_length=32, max_predictions_per_sequence=5)
    plan = BatchPlan(global_batch_size=8, micro_batch_size=4, world_size=1)
    with BatchLoader(open_source(config, 1), config, plan, 0, seed=1) as loader:
        return [next(loader).micro_batches for _ in range(3)]


def train(
    micro_batches, stage: int, optimizer: str, *, compiled: bool = False, dropout: float = 0.1
) -> tuple[list[float], list[bool]]:
    """Losses, and whether each layer's three weights and three biases are neighbours."""
    settings = check_deepspeed_values(
        {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 4,
            "bf16": {"enabled": True},
            "optimizer": {"type": optimizer, "params": {"lr": 1e-2}},
            "zero_optimization": {"stage": stage},
        }
    )
    torch.manual_seed(0)
    chances = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = BertForPreTraining(replace(MODEL, **chances), 65)
    if compiled:
        assert compile_layers(model, "cpu", backend="aot_eager")
    engine = Engine.create(model, settings, settings.batch_plan(1), seed=1)
    losses, together = [], []
    for number, step in enumerate(micro_batches):
        for micro_step, micro_batch in enumerate(step):
            engine.seed_dropout(1, number, micro_step)
            output = engine.forward_backward(micro_batch, mlm_scale=0.1, nsp_scale=0.1)
            losses.append(float(output.mlm_loss_sum))
        engine.step()
    for layer in model.bert.encoder.layer:
        parts = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
        together.append(attention.are_neighbours([part.weight for part in parts]))
        together.append(attention.are_neighbours([part.bias for part in parts]))
    engine.close()
    return losses, together


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_places_them_side_by_side_and_training_is_the_same(
    micro_batches, stage, optimizer, monkeypatch
) -> None:
    plain, _ = train(micro_batches, stage, optimizer)
    # As on a GPU: weights before biases, and joined in place.
    order, join = build_optimizer.memory_order, attention.join
    joined = []

    def in_place(parts, *, in_place):
        whole = join(parts, in_place=True)
        joined.append(whole.data_ptr() == parts[0].data_ptr())
        return whole

    cuda = torch.device("cuda")
    monkeypatch.setattr(build_optimizer, "memory_order", lambda named, device: order(named, cuda))
    monkeypatch.setattr(attention, "join", in_place)
    losses, together = train(micro_batches, stage, optimizer)
    assert all(together) and all(joined) and len(joined) == 2 * 2 * 2 * 3
    assert losses == pytest.approx(plain, rel=1e-3)  # bfloat16
    assert losses[-1] != losses[0]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Weights before biases, and joined in place."""
    order, join = build_optimizer.memory_order, attention.join
    cuda = torch.device("cuda")
    monkeypatch.setattr(build_optimizer, "memory_order", lambda named, device: order(named, cuda))
    monkeypatch.setattr(attention, "join", lambda parts, *, in_place: join(parts, in_place=True))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_compiled_layers_train_the_same_at_every_stage(micro_batches, stage, as_on_a_gpu) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled, _ = train(micro_batches, stage, "Lamb", compiled=True, dropout=0.0)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    plain, _ = train(micro_batches, stage, "Lamb", dropout=0.0)
    assert compiled == pytest.approx(plain, rel=1e-3)
    torch._dynamo.reset()


def test_stage_3_computes_the_three_separately(micro_batches) -> None:
    losses, _ = train(micro_batches, 3, "AdamW")
    plain, _ = train(micro_batches, 1, "AdamW")
    assert losses == pytest.approx(plain, rel=1e-2)
