"""Gradient norms of large tensors: those of float64, at every stage, in every precision."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from bertds.engine.bf16_wrapper import use_exact_norms
from bertds.optim.gradient_norm import clip_gradients, global_norm
from tests.support.toy_engine import Output, make_engine, values

LARGE = 4_000_000
"""Number of elements at which torch's own float32 norm is off by more than 1e-4."""


def gradient() -> torch.Tensor:
    return torch.randn(LARGE, generator=torch.Generator().manual_seed(0)) * 1e-3


class Factor(NamedTuple):
    factor: torch.Tensor

    def model_inputs(self) -> dict[str, torch.Tensor]:
        return self._asdict()


class Linear(torch.nn.Module):
    """Its gradient is known: a fixed vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(LARGE))
        self.gradient = gradient()

    def forward(self, factor: torch.Tensor) -> Output:
        loss = (self.weight * self.gradient.to(self.weight.dtype)).sum() * factor
        zero = loss.detach() * 0.0
        return Output(loss, zero, zero, zero)


def exact(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().sum().sqrt())


def test_torchs_own_norm_would_be_wrong() -> None:
    """Else the tests below would prove little."""
    assert abs(float(gradient().norm()) / exact(gradient()) - 1.0) > 5e-5


@pytest.mark.parametrize(
    ("stage", "precision", "more"),
    [
        (0, "fp32", {}),
        (1, "fp32", {}),
        (2, "fp32", {}),
        (3, "fp32", {}),
        (1, "bf16", {}),
        (1, "bf16", {"data_types": {"grad_accum_dtype": "bf16"}}),
        (2, "bf16", {}),
        (3, "bf16", {}),
    ],
    ids=lambda value: ("sums in bf16" if value else "") if isinstance(value, dict) else None,
)
def test_the_engines_norm_is_exact(stage: int, precision: str, more: dict) -> None:
    json_values = values(stage, precision, train_batch_size=1, gradient_clipping=0.25, **more)
    json_values["train_micro_batch_size_per_gpu"] = 1
    json_values["optimizer"]["params"] |= {"betas": [0.5, 0.9]}
    engine = make_engine(json_values, Linear())
    engine.set_learning_rate(0.0)
    engine.forward_backward(Factor(torch.ones(())), mlm_scale=1.0, nsp_scale=1.0)
    assert engine.step()
    true = gradient() if precision == "fp32" else gradient().bfloat16()
    want = exact(true)
    assert engine.gradient_norm() == pytest.approx(want, rel=1e-6)
    # The first moment after one step is (1 - beta1) times the clipped gradient.
    [moment] = [p.tensor for p in engine.pieces() if p.kind == "exp_avg"]
    assert exact(moment) == pytest.approx(0.5 * 0.25, rel=2e-6)
    engine.close()


def test_the_norm_of_no_tensor_and_of_many_dtypes() -> None:
    assert float(global_norm([])) == 0.0
    parts = [gradient()[:1000], gradient()[1000:2000].bfloat16(), gradient()[:1].double()]
    parts.append(gradient()[:3000].view(60, 50).t())  # not contiguous
    want = exact(torch.cat([part.double().flatten() for part in parts]))
    found = global_norm(parts)
    assert found.dtype == torch.float64 and found.dim() == 0
    assert float(found) == pytest.approx(want, rel=1e-12)
    assert torch.isnan(global_norm([torch.tensor([1.0, float("nan")])]))
    assert torch.isinf(global_norm([torch.tensor([1.0, float("inf")])]))


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_is_torchs(limit: float) -> None:
    tensors = [torch.full((3, 3), 2.0), torch.full((5,), -1.0)]
    parameters = [torch.nn.Parameter(torch.zeros_like(tensor)) for tensor in tensors]
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.grad = tensor.clone()
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    clip_gradients(tensors, global_norm(tensors), limit)
    for parameter, tensor in zip(parameters, tensors, strict=True):
        torch.testing.assert_close(tensor, parameter.grad, rtol=1e-6, atol=0)


def test_bf16_gradients_below_the_limit_are_not_scaled_up() -> None:
    """The clipping that replaces DeepSpeed's: by limit / (norm + 1e-6), if that is below 1."""
    from deepspeed.runtime import bf16_optimizer

    use_exact_norms()
    for length, factor in ((0.5, 1.0), (1.0, 1.0 / (1.0 + 1e-6)), (4.0, 1.0 / (4.0 + 1e-6))):
        gradient = torch.tensor([0.6, 0.8]) * length
        norm = torch.tensor(length)
        found = bf16_optimizer.clip_tensors_by_global_norm(
            [gradient], max_norm=1.0, global_norm=norm
        )
        assert float(found) == length
        assert gradient.tolist() == pytest.approx([0.6 * length * factor, 0.8 * length * factor])
