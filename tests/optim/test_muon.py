"""Muon's parts; tests/engine/test_muon.py runs it under ZeRO."""

from __future__ import annotations

import pytest
import torch

from bertds.config.recipe import ModelConfig
from bertds.model.bert import BertForPreTraining
from bertds.optim.moments import create_moments
from bertds.optim.muon import ShardedMuon, is_hidden_matrix, orthogonal
from bertds.optim.partition import Partition, Slice
from bertds.optim.weight_decay import is_decayed


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (31, 31), (2, 50)])
def test_the_iteration_is_its_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert float(values.max()) < 1.3  # near 1, but for those that were next to nothing
    found = orthogonal(matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left @ values.diag() @ right, rtol=0, atol=2e-6)


@pytest.mark.gpu
def test_on_a_gpu_it_is_that_of_a_cpu_to_bf16() -> None:
    matrix = torch.randn(16, 600, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix.cuda())
    assert found.dtype == torch.float32
    want = orthogonal(matrix)
    assert float((found.cpu() - want).norm() / want.norm()) < 0.05


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForPreTraining(ModelConfig(**size, intermediate_size=32), 40)
    hidden = {n for n, p in model.named_parameters() if is_hidden_matrix(n, tuple(p.shape))}
    layer = "bert.encoder.layer.0."
    parts = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    want = {f"{layer}{part}.weight" for part in parts}
    assert hidden == want | {"bert.pooler.dense.weight", "cls.predictions.transform.dense.weight"}
    # ModernBERT's names; a head; a vector that is written as a matrix.
    assert is_hidden_matrix("model.layers.0.attn.Wqkv.weight", (48, 16))
    for name in ("model.embeddings.tok_embeddings.weight", "decoder.weight", "classifier.weight"):
        assert not is_hidden_matrix(name, (40, 16))
    assert not is_hidden_matrix("model.layers.0.attn.Wqkv.bias", (48,))
    assert not is_hidden_matrix("dense.weight", (1, 16))


def muon(lr: float = 0.1) -> tuple[ShardedMuon, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.zeros(8))
    shapes = {"dense.weight": (2, 3), "dense.bias": (2,)}
    optimizer = ShardedMuon(
        [parameter], lr=lr, weight_decay=0.0, shapes=shapes, is_decayed=is_decayed
    )
    return optimizer, parameter


def test_a_hand_worked_step() -> None:
    """The first update of a matrix with singular values of one size is that matrix, scaled."""
    optimizer, parameter = muon()
    slices = [Slice("dense.weight", 0, 0, 6), Slice("dense.bias", 0, 6, 2)]
    optimizer.bind([Partition(parameter, slices)], ["dense.weight", "dense.bias"])
    gradient = torch.tensor([5.0, 0.0, 0.0, 0.0, -5.0, 0.0, 3.0, -4.0])
    parameter.grad = gradient.clone()
    optimizer.step()
    value = 0.5**0.5  # of both singular values, after division by the norm
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    size = 0.1 * 0.2 * 3**0.5 * value
    want = [-size, 0, 0, 0, size, 0, -0.1, 0.1]  # the bias: AdamW's first step is the sign
    assert parameter.tolist() == pytest.approx(want, rel=1e-5, abs=1e-9)
    moments = optimizer.state[parameter]
    assert torch.equal(moments["exp_avg"][:6], gradient[:6])
    assert not moments["exp_avg_sq"][:6].any() and bool((moments["exp_avg_sq"][6:] > 0).all())


def test_a_step_before_bind_raises() -> None:
    optimizer, parameter = muon()
    create_moments(optimizer, parameter)
    parameter.grad = torch.ones(8)
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()
    assert not parameter.any()
