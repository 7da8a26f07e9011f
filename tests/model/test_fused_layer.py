"""The fused layer and its kernels, in Triton's interpreter on a CPU, as they are on a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from bertds.model.bert import BertForPreTraining  # noqa: E402
from bertds.model.encoder import EncoderLayer  # noqa: E402
from bertds.model.fused_layer import LONGEST_OWN_ROW, fuse_layers  # noqa: E402
from bertds.model.kernels import add_norm, column_sums  # noqa: E402
from bertds.model.kernels.add_norm import Drop, draw_keys  # noqa: E402
from bertds.model.kernels.long_rows import attend_long_rows  # noqa: E402
from bertds.model.kernels.short_rows import attend_short_rows  # noqa: E402
from bertds.model.row_layout import RowLayout  # noqa: E402
from tests.gpu.small_bert import CONFIG, distance, loss_and_gradients, make_model, make_rows  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1"
)

LENGTHS = [40, 0, 17, 3, 41]
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
TOKENS = sum(LENGTHS)


@triton.jit
def factors_of(bits, factors, THRESHOLD: tl.constexpr, COUNT: tl.constexpr):
    for i in range(COUNT):
        x = tl.load(bits + i).to(tl.uint32, bitcast=True)
        tl.store(factors + i, add_norm.keep_factor(x, THRESHOLD))


def layer_of(**changes) -> tuple[BertForPreTraining, EncoderLayer]:
    """A model whose first layer has no parameter that is all zeros or ones."""
    config = replace(CONFIG, **changes)
    torch.manual_seed(0)
    model = BertForPreTraining(config, 101).train()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, layer


def layout(kernel: str) -> RowLayout:
    return RowLayout(cu_seqlens=STARTS, max_seqlen=max(LENGTHS), kernel=kernel)


def results(layer, hidden: Tensor, kernel: str, read: Tensor | None) -> dict[str, Tensor]:
    """Output and gradients of one pass."""
    layer.zero_grad(set_to_none=True)
    hidden = hidden.clone().requires_grad_()
    output = layer(hidden, layout(kernel), read)
    generator = torch.Generator().manual_seed(2)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output.detach(), "hidden": hidden.grad, **gradients}


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, None),
        ({"hidden_act": "gelu_new"}, None),
        # Neither width a power of two; the tokens that are read, one of them twice.
        (
            {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 200},
            [0, 44, 7, 7, 99],
        ),
    ],
    ids=["erf", "tanh", "odd widths, some tokens"],
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
def test_it_is_the_layers_modules(changes, read, dtype, limit) -> None:
    """Output and every gradient, against the modules in float64."""
    model, layer = layer_of(**changes)
    layer.to(dtype)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, model.config.hidden_size, generator=generator).to(dtype)
    read = None if read is None else torch.tensor(read)
    want = results(layer.double(), hidden.double(), "padded", read)
    layer.to(dtype)
    fuse_layers(model)
    found = results(layer, hidden, "flash", read)
    for name, value in want.items():
        # A key's bias changes no softmax: its gradient is 0, in float16 up to rounding.
        size = value.norm() if "key.bias" not in name else want[name.replace("key", "value")].norm()
        assert float((found[name].double() - value).norm() / size) < limit, name


def test_the_whole_model_has_the_same_loss_and_gradients(monkeypatch) -> None:
    batch = make_rows(3)
    want_loss, want = loss_and_gradients(make_model(), batch)
    model = make_model()
    assert fuse_layers(model) == LONGEST_OWN_ROW
    monkeypatch.setattr(model.bert.encoder, "kernel", lambda: "flash")
    loss, gradients = loss_and_gradients(model, batch)
    assert math.isclose(loss, want_loss, rel_tol=1e-6)
    assert distance(gradients, want) < 2e-6


def test_evaluation_uses_the_modules(monkeypatch) -> None:
    model = make_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5).eval()
    batch = make_rows(3)
    with torch.no_grad():
        want = model(**batch.model_inputs())
        fuse_layers(model)
        found = model(**batch.model_inputs())
    assert all(torch.equal(a, b) for a, b in zip(found[:4], want[:4], strict=True))


def test_other_dtypes_and_kernels_take_the_modules(monkeypatch) -> None:
    """Under autocast, the output of a LayerNorm is float32 whatever the weights are."""
    model, layer = layer_of()
    fuse_layers(model)
    taken = []

    def modules(layer: EncoderLayer, hidden: Tensor, layout: RowLayout, read: object) -> None:
        taken.append((hidden.dtype, layout.kernel))

    monkeypatch.setattr(EncoderLayer, "forward", modules)
    hidden = torch.randn(TOKENS, 64)
    assert layer(hidden, layout("flash")).dtype == torch.float32 and not taken
    layer(hidden, layout("padded"))
    layer.bfloat16()(hidden, layout("flash"))
    assert taken == [(torch.float32, "padded"), (torch.float32, "flash")]


def test_weights_that_change_or_move_are_followed() -> None:
    """Separate weights are copied in every pass; a joined view refers to fixed memory."""
    model, layer = layer_of()
    fuse_layers(model)
    hidden, own = torch.randn(TOKENS, 64), layer.attention.self
    for turn in range(4):
        with torch.no_grad():
            if turn:  # as ZeRO lays them: in one buffer, now and then another one
                for kind in ("weight", "bias"):
                    parts = [getattr(part, kind) for part in (own.query, own.key, own.value)]
                    for part, place in zip(parts, torch.stack(parts), strict=True):
                        part.data = place
            for parameter in layer.parameters():
                parameter.mul_(1.25)
        found = layer(hidden, layout("flash"))
        want = EncoderLayer.forward(layer, hidden, layout("padded"))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
        assert len(layer.forward._joined) == (2 if turn else 0)  # no buffer is held that was left


# -- dropout -------------------------------------------------------------------------------------


def test_each_layer_has_masks_of_its_own() -> None:
    model, layer = layer_of(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    second = model.bert.encoder.layer[1]
    second.load_state_dict(layer.state_dict())
    fuse_layers(model)
    keys, hidden = draw_keys(6, torch.device("cpu")), torch.randn(TOKENS, 64)

    def outputs(*drawn: Tensor) -> list[Tensor]:
        where = replace(layout("flash"), keys=drawn)
        return [each(hidden, where).detach() for each in (layer, second)]

    first, other = outputs(*keys)
    assert not torch.allclose(first, other, atol=0.1)
    assert torch.equal(torch.stack(outputs(*keys[3:], *keys[:3])), torch.stack([other, first]))


def test_gradients_are_those_of_the_masks_that_were_drawn() -> None:
    """The slope along a random direction, from two passes with the same keys, in float32."""
    model, layer = layer_of(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    fuse_layers(model)
    torch.manual_seed(3)
    hidden, direction, upstream = (torch.randn(TOKENS, 64) for _ in range(3))

    def value(at: Tensor) -> Tensor:
        torch.manual_seed(4)  # the keys are drawn from torch's generator
        return (layer(at, layout("flash")) * upstream).sum()

    start = hidden.clone().requires_grad_()
    [gradient] = torch.autograd.grad(value(start), start)
    step = 1e-2
    with torch.no_grad():
        slope = (value(hidden + step * direction) - value(hidden - step * direction)) / (2 * step)
    assert math.isclose(float((gradient * direction).sum()), float(slope), rel_tol=2e-3)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("long_rows", [False, True], ids=["short rows", "long rows"])
def test_attention_drops_at_its_rate_and_follows_the_seed(probability, long_rows) -> None:
    """Equal scores and unit values show each weight's fate: 0, or 1 / (length (1 - p))."""
    length, rows = 32, 8
    starts = torch.arange(rows + 1, dtype=torch.int32) * length
    qkv = torch.zeros(rows * length, 3, 2, 32)
    qkv[:, 2] = torch.eye(length).repeat(rows, 1)[:, None]

    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        keys = draw_keys(3, torch.device("cpu"))
        attend = attend_long_rows if long_rows else attend_short_rows
        output = attend(qkv, starts, length, probability, keys[0])
        output = output.output if long_rows else output
        return output.view(rows, length, 2, length).transpose(1, 2)

    first, again, other = weights(5), weights(5), weights(6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    dropped = (first == 0).float()
    deviation = math.sqrt(probability * (1 - probability))
    assert abs(float(dropped.mean()) - probability) < 4 * deviation / math.sqrt(first.numel())
    # Rows, columns, heads: each on its own varies as independent draws do.
    for axes in ((1, 2, 3), (0, 1, 2), (0, 1, 3)):
        means = dropped.mean(axes)
        expected = deviation / math.sqrt(dropped.numel() / means.numel())
        assert float(means.std()) < 2 * expected
    kept = first[first > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, Drop.of(probability).scale / length))
    assert not torch.equal(first[0, 0], first[1, 0]) and not torch.equal(first[0, 0], first[0, 1])


@pytest.mark.parametrize("attend", [attend_short_rows, attend_long_rows], ids=["short", "long"])
def test_the_weights_of_a_row_are_dropped_independently(attend) -> None:
    """No correlation of pairs, triples or squares of weights, in one row and 16 heads."""
    length, heads, probability = 128, 16, 0.25
    qkv = torch.zeros(length, 3, heads, 128)
    qkv[:, 2] = torch.eye(length)[:, None]
    torch.manual_seed(7)
    [keys] = draw_keys(1, torch.device("cpu"))
    starts = torch.tensor([0, length], dtype=torch.int32)
    output = attend(qkv, starts, length, probability, keys)
    output = getattr(output, "output", output).transpose(0, 1)  # heads, queries, keys
    x = ((output == 0).float() - probability) / math.sqrt(probability * (1 - probability))
    for apart in (1, 2, 64):
        along_keys = x[:, :, apart:] * x[:, :, :-apart]
        along_queries = x[:, apart:] * x[:, :-apart]
        squares = along_keys[:, apart:] * along_keys[:, :-apart]
        for products in (along_keys, along_queries, squares):
            assert abs(float(products.mean())) < 4 / math.sqrt(products.numel())
    triples = x[:, :, 2:] * x[:, :, 1:-1] * x[:, :, :-2]
    assert abs(float(triples.mean())) < 4 / math.sqrt(triples.numel())


def test_neighbours_and_draws_are_independent() -> None:
    """Hidden dropout over 200,000 elements: no correlation with neighbours or another draw."""
    zeros, ones = torch.zeros(800, 256), torch.ones(256)
    draws = []
    for _ in range(2):
        keys = draw_keys(3, torch.device("cpu"))
        _, summed, _ = add_norm.add_norm(zeros + 1.0, zeros, ones, ones, 1e-12, 0.25, keys[1])
        draws.append((summed == 0).float() - 0.25)
    first, other = draws
    pairs = [(first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, other)]
    for a, b in pairs:
        correlation = float((a * b).mean()) / (0.25 * 0.75)
        assert abs(correlation) < 4 / math.sqrt(a.numel())


@pytest.mark.parametrize("changed", [0, 1])
def test_both_keys_decide_a_mask(changed) -> None:
    zeros, ones = torch.zeros(8, 256), torch.ones(256)
    torch.manual_seed(8)
    keys, drawn = draw_keys(2, torch.device("cpu"))
    other = keys.clone()
    other[changed] = drawn[changed]
    masks = [
        add_norm.add_norm(zeros + 1.0, zeros, ones, ones, 1e-12, 0.5, each)[1] == 0
        for each in (keys, other)
    ]
    # As different as independent ones.
    assert abs(float((masks[0] != masks[1]).float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(8 * 256)


@pytest.mark.parametrize("probability", [0.0, 2**-23, 0.1, 1 / 3, 1.0])
def test_the_scale_belongs_to_the_probability_that_is_used(probability) -> None:
    """The factor of every hash near the threshold, and of the first and the last."""
    threshold, scale = Drop.of(probability)
    dropped = round(probability * 2**23)
    assert math.isclose(dropped / 2**23, probability, abs_tol=2**-24)
    assert scale == (0.0 if probability == 1.0 else 1.0 / (1.0 - dropped / 2**23))
    mantissas = torch.tensor([0, dropped - 1, dropped, dropped + 1, 2**23 - 1]).clamp(0, 2**23 - 1)
    bits = (mantissas[:, None] * 512 + torch.tensor([0, 1, 511])).flatten()  # the last 9 bits
    factors = torch.full([bits.numel()], 0.5)
    signed = torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32)
    factors_of[(1,)](signed, factors, THRESHOLD=threshold, COUNT=bits.numel())
    want = (mantissas >= dropped).float().repeat_interleave(3)
    assert torch.equal(factors, want)


# -- single kernels ------------------------------------------------------------------------------


def test_joined_gradients_are_a_stack_with_its_sums() -> None:
    parts = torch.randn(3, 77, 3, 16)
    joined, sums = column_sums.join_gradients(tuple(parts))
    want = torch.stack(tuple(parts), 1)
    assert torch.equal(joined, want)
    torch.testing.assert_close(sums.sum(0), want.flatten(1).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelus_gradient_is_torchs(approximate) -> None:
    values = torch.linspace(-6, 6, 45 * 40).view(45, 40)
    upstream = torch.randn(45, 40)
    want = torch.ops.aten.gelu_backward(upstream.double(), values.double(), approximate=approximate)
    found, sums = column_sums.gelu_backward(upstream.clone(), values, approximate)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.sum(0).double(), want.sum(0), rtol=1e-5, atol=1e-5)


def test_finished_sums_are_torchs() -> None:
    parts = tuple(
        torch.randn(rows, width) for rows, width in [(70, 96), (1, 200), (33, 96), (5, 1)]
    )
    found = column_sums.finish_sums(parts, torch.bfloat16)
    want = torch.cat([part.double().sum(0) for part in parts])
    torch.testing.assert_close(found, want.bfloat16(), rtol=1e-2, atol=0)
    exact = column_sums.finish_sums(parts, torch.float32).double()
    torch.testing.assert_close(exact, want, rtol=1e-5, atol=1e-5)


# -- for a GPU -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "shared_kib"),
    [("80", 163), ("86", 99), ("89", 99), ("90", 227)],
    ids=["A100", "RTX 3090", "L4", "H100"],
)
def test_each_kernel_fits_on_every_gpu(capability, shared_kib, tmp_path, repository: Path) -> None:
    """Compiled without a GPU: shared memory, 16-byte loads, nothing atomic, and on an H100 more."""
    result = tmp_path / "kernels.json"
    command = [sys.executable, repository / "benchmarks/kernel_code.py"]
    done = subprocess.run(
        [*command, "--capability", capability, "--json", result],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = {found["kernel"]: found for found in json.loads(result.read_text())["kernels"]}
    assert ("short_rows._attend" in kernels) == (shared_kib >= 163)
    assert {"long_rows._attend", "_add_norm_backward", "_cross_entropy", "accumulate"} <= set(
        kernels
    )
    for name, found in kernels.items():
        assert found["shared"] <= shared_kib * 1024, f"{name} needs {found['shared']} bytes"
        assert found["atomic"] == 0, f"{name}: {found}"
        # A block of ``accumulate`` may end anywhere.
        assert found["wide"] > 0 or name == "accumulate", f"{name}: {found}"
    if capability != "90":
        return
    assert max(found["stack"] for found in kernels.values()) <= 72  # bytes, with Triton 3.6
    # Name, programs that run at a time on a multiprocessor, instructions per weight.
    for name, programs, most in [
        ("short_rows._attend", 2, 20),
        ("short_rows._attend_backward", 1, 34),
        ("long_rows._attend", 3, 17),
        ("long_rows._attend_backward", 2, 30),
    ]:
        found = kernels[name]
        assert found["programs"] >= programs and found["per_weight"] <= most, f"{name}: {found}"
