"""FP8 linear layers: the formats' arithmetic, gradients, and what stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bertds.config.recipe import Config
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers
from bertds.model.fp8 import (
    BACKWARD,
    FORWARD,
    fp8_linear,
    rounded,
    scale_of,
    scaled_product,
    use_fp8,
)
from bertds.training.speedups import check_fp8


def whole_numbers(*shape: int, seed: int) -> torch.Tensor:
    """Numbers that both formats hold exactly once 7 is brought to their largest value."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([-7.0, -6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 3.0, 5.0, 7.0])
    chosen = values[torch.randint(0, len(values), shape, generator=generator)]
    chosen[0, 0] = 7.0
    return chosen.to(torch.bfloat16)


@pytest.mark.parametrize("tokens", [16, 21])
def test_numbers_that_fit_the_formats_are_multiplied_exactly(tokens) -> None:
    leaves = [whole_numbers(tokens, 32, seed=1), whole_numbers(48, 32, seed=2)]
    bias = whole_numbers(1, 48, seed=3)[0]
    upstream = whole_numbers(tokens, 48, seed=4)
    results = []
    for product in (fp8_linear, F.linear):
        inputs = [leaf.clone().requires_grad_() for leaf in (*leaves, bias)]
        output = product(*inputs)
        output.backward(upstream)
        results.append([output, *(leaf.grad for leaf in inputs)])
    for found, wanted in zip(*results, strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0.5)  # bf16's own rounding
    # Not by chance: thirds do not fit.
    thirds = [leaf / 3 for leaf in leaves]
    assert not torch.equal(fp8_linear(*thirds, bias), F.linear(*thirds, bias))


@pytest.mark.parametrize(
    ("dtype", "share"),
    [(FORWARD, 2**-4), (BACKWARD, 2**-3)],  # half of the last place of 3 and of 2 bits
)
def test_rounding_is_within_the_format_whatever_the_magnitude(dtype, share) -> None:
    for size in (1e-12, 1.0, 1e12):
        values = torch.linspace(0.1, 1.0, 400) * size
        scale = scale_of(values, dtype)
        back = rounded(values, scale, dtype).float() / scale
        assert ((back - values).abs() / values).max() <= share * 1.001
        assert float(back.max()) == pytest.approx(size, rel=1e-5)  # the range is used up
    assert rounded(torch.zeros(4), scale_of(torch.zeros(4), dtype), dtype).float().sum() == 0.0


def test_the_imitation_is_torchs_scaled_product() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(rows, 32, generator=generator) for rows in (5, 16))
    for left_dtype in (FORWARD, BACKWARD):
        scales = scale_of(left, left_dtype), scale_of(right, FORWARD)
        left8, right8 = rounded(left, scales[0], left_dtype), rounded(right, scales[1], FORWARD)
        wanted = torch._scaled_mm(
            left8, right8.t(), scale_a=scales[0].reciprocal(), scale_b=scales[1].reciprocal(),
            out_dtype=torch.bfloat16,
        )  # fmt: skip
        found = scaled_product(left8, right8, *scales, precise=True)
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-3)


def test_what_is_not_finite_stays_visible() -> None:
    for bad in (torch.inf, torch.nan):
        values = torch.ones(16, 32, dtype=torch.bfloat16)
        values[3, 3] = bad
        output = fp8_linear(values, torch.ones(16, 32).bfloat16(), torch.zeros(16).bfloat16())
        assert not output.isfinite().all()


def gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    return float(output.mlm_loss_sum.detach()), [p.grad.float() for p in model.parameters()]


@pytest.fixture
def pair(tiny, vocab_size):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(BertForPreTraining(tiny, vocab_size).bfloat16())
    layers = tiny.num_hidden_layers
    assert use_fp8(models[1].bert.encoder) == 6 * layers  # query, key, value, three denses
    return models


def test_losses_and_gradients_are_near_and_the_rest_is_untouched(pair, batch) -> None:
    plain, fp8 = pair
    assert list(plain.state_dict()) == list(fp8.state_dict())
    (loss, wanted), (near, found) = (gradients(model, batch.ours()) for model in pair)
    assert loss != near == pytest.approx(loss, rel=0.03)
    for (name, _), left, right in zip(plain.named_parameters(), wanted, found, strict=True):
        if "self.key.bias" in name:  # truly zero: only rounding is there
            continue
        similarity = F.cosine_similarity(left.flatten(), right.flatten(), dim=0)
        assert similarity > 0.93, (name, float(similarity))
    plain.eval(), fp8.eval()
    assert torch.equal(plain(**batch.ours()).mlm_loss_sum, fp8(**batch.ours()).mlm_loss_sum)


@pytest.mark.slow
def test_compiled_layers_multiply_in_fp8_too(pair, batch) -> None:
    torch._dynamo.reset()
    _, fp8 = pair
    loss, wanted = gradients(fp8, batch.ours())
    assert compile_layers(fp8, "cpu", backend="aot_eager")
    compiled_loss, found = gradients(fp8, batch.ours())
    assert compiled_loss == pytest.approx(loss, rel=1e-2)
    for left, right in zip(wanted, found, strict=True):
        torch.testing.assert_close(left, right, rtol=0.1, atol=0.1)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("precision", "capability", "change", "words"),
    [
        ("fp32", None, {}, '"bf16": {"enabled": true} in the DeepSpeed JSON, found fp32'),
        ("bf16", (8, 0), {}, "compute capability 8.9 or higher.*has 8.0"),
        ("bf16", (9, 0), {"hidden_size": 72}, "model.hidden_size=72 must be a multiple of 16"),
    ],
)
def test_where_fp8_cannot_be_it_is_refused(precision, capability, change, words) -> None:
    config = Config()
    config = replace(config, model=replace(config.model, fp8=True, **change))
    with pytest.raises(ConfigError, match=words):
        check_fp8(config, precision, capability)


def test_a_run_trains_in_fp8(command, tiny_json, tmp_path) -> None:
    from bertds.train import main

    values = json.loads(tiny_json.read_text())
    losses = {}
    for stage in (1, 3):
        path = tmp_path / f"stage{stage}.json"
        path.write_text(
            json.dumps({**values, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}})
        )
        run = f"run{stage}"
        assert main(command(run, "schedule.total_steps=2", "model.fp8=true", "log.every_steps=1",
                            "checkpoint.every_steps=0", deepspeed=path)) == 0  # fmt: skip
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        losses[stage] = [json.loads(line)["loss"] for line in lines if '"lr"' in line]
    assert losses[1] == pytest.approx(losses[3], rel=0.02)


@pytest.mark.gpu
def test_a_gpus_product_is_the_imitation(pair, batch) -> None:
    weight, bias = whole_numbers(48, 32, seed=2), whole_numbers(1, 48, seed=3)[0]
    values = torch.randn(21, 32, dtype=torch.bfloat16)
    wanted = fp8_linear(values, weight, bias)
    found = fp8_linear(*(t.cuda() for t in (values, weight, bias))).cpu()
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
