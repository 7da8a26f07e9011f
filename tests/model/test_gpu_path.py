"""The GPU's path, driven where there is no GPU: on the meta device, which computes nothing.

Shapes, dtypes and the operators that are dispatched are those of CUDA in bfloat16 and float16, so
what would keep the host busy (copies, nested tensors, a kernel per row) is seen here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from bertds.config.recipe import ModelConfig
from bertds.errors import ConfigError
from bertds.model import attention_kernels
from bertds.model.attention import are_neighbours, join, side_by_side
from bertds.model.attention_kernels import activate_kernel, choose_kernel
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers
from bertds.model.row_layout import RowLayout

VOCABULARY = 101
LENGTHS = [9, 24, 5, 17]
FLASH = "aten._flash_attention_forward.default"


class Operators(TorchDispatchMode):
    """Counts what is dispatched; views, which cost a GPU nothing, apart."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.flash_inputs: list[tuple[torch.Tensor, ...]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not (function.is_view or function is torch.ops.aten.detach.default):
            self.counts[str(function)] += 1
        if str(function) == FLASH:
            self.flash_inputs.append(arguments[:3])
        return function(*arguments, **(options or {}))


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        attention_kernel="flash",
    )


def on_meta(config: ModelConfig, dtype: torch.dtype) -> BertForPreTraining:
    with torch.device("meta"):
        return BertForPreTraining(config, VOCABULARY).to(dtype).train()


def inputs_of(lengths: list[int], masked: int = 6) -> dict[str, object]:
    tokens = sum(lengths)

    def zeros(size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, device="meta")

    return {
        "input_ids": zeros(tokens),
        "segment_ids": zeros(tokens),
        "position_ids": zeros(tokens),
        "cu_seqlens": zeros(len(lengths) + 1, torch.int32),
        "max_seqlen": max(lengths),
        "masked_lm_positions": zeros(masked),
        "masked_lm_ids": zeros(masked),
        "next_sentence_labels": zeros(len(lengths)),
    }


def pass_through(model: BertForPreTraining, inputs: dict[str, object]) -> Operators:
    with Operators() as operators:
        output = model(**inputs)
        (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    return operators


# -- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_every_dropout_takes_the_flash_operator(config, dtype, dropout_p) -> None:
    config = replace(config, attention_probs_dropout_prob=dropout_p)
    model = on_meta(config, dtype)
    operators = pass_through(model, inputs_of(LENGTHS))
    assert operators.counts[FLASH] == operators.counts[FLASH.replace("forward", "backward")] == 2
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == dtype
    for name in operators.counts:
        assert "nested" not in name and "jagged" not in name
    for query, key, value in operators.flash_inputs:
        assert query.shape == (sum(LENGTHS), 4, 16)
        # Strided views of one product: a token's row is all three wide, and they follow each other.
        assert {t.stride() for t in (query, key, value)} == {(192, 16, 1)}
        assert [t.storage_offset() for t in (query, key, value)] == [0, 64, 128]
        assert len({t.untyped_storage()._cdata for t in (query, key, value)}) == 1


def layer_operators(config: ModelConfig, prepare=lambda layer: None) -> Counter[str]:
    """What one layer's forward and backward dispatch."""
    layer = on_meta(config, torch.bfloat16).bert.encoder.layer[0]
    prepare(layer)
    hidden = torch.zeros(50, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    starts = torch.zeros(4, dtype=torch.int32, device="meta")
    layout = RowLayout(cu_seqlens=starts, max_seqlen=20, kernel="flash")
    with Operators() as operators:
        layer(hidden, layout).backward(torch.zeros_like(hidden))
    operators.counts["aten.zeros_like.default"] -= 1  # the upstream gradient above
    assert hidden.grad.shape == hidden.shape
    return +operators.counts


def lay_flat(layer: torch.nn.Module, *, weights_first: bool) -> None:
    """Give the parameters one flat storage, as ZeRO 1 and 2 do."""
    parameters = list(layer.parameters())
    if weights_first:
        parameters.sort(key=lambda parameter: -parameter.dim())
    flat = torch.cat([parameter.detach().view(-1) for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()


def test_a_layer_does_not_make_the_host_wait(config) -> None:
    """With nested tensors, it dispatched several times as many and took the host 4 to 8 ms."""
    apart = layer_operators(config)
    assert apart["aten.cat.default"] == 2  # the three weights, the three biases
    assert apart.total() <= 35
    flat = layer_operators(config, lambda layer: lay_flat(layer, weights_first=True))
    assert flat["aten.cat.default"] == 0
    assert flat.total() <= 33
    interleaved = layer_operators(config, lambda layer: lay_flat(layer, weights_first=False))
    assert interleaved == apart


def test_what_is_not_a_layer_costs_little(config) -> None:
    totals = []
    for layers in (1, 2):
        model = on_meta(replace(config, num_hidden_layers=layers), torch.bfloat16)
        totals.append(pass_through(model, inputs_of(LENGTHS)).counts.total())
    assert 2 * totals[0] - totals[1] <= 84  # embeddings, both heads, both losses


def test_a_whole_layer_is_one_graph_for_all_shapes(config) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = on_meta(config, torch.bfloat16)
    for layer in model.bert.encoder.layer:
        lay_flat(layer, weights_first=True)
    assert compile_layers(model, "meta", backend="aot_eager")
    for lengths in ([5, 7], [9, 3, 8], [11, 12, 2, 4], [13, 12]):
        output = model(**inputs_of(lengths))
        (output.mlm_loss_sum + output.nsp_loss_sum).backward()
        assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch._dynamo.reset()


# -- queries, keys and values in one -------------------------------------------------------------


def test_neighbours_are_joined_without_a_copy_and_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    flat = torch.randn(3 * 4 * 5)
    values, upstream = torch.randn(7, 5), torch.randn(7, 12)
    results = []
    for in_place in (True, False):
        parts = [torch.nn.Parameter(part.view(4, 5)) for part in flat.clone().chunk(3)]
        assert not are_neighbours(parts[::-1]) and not are_neighbours([parts[0], parts[2]])
        joined = join(parts, in_place=in_place)
        assert (joined.data_ptr() == parts[0].data_ptr()) == in_place
        torch.nn.functional.linear(values, joined).backward(upstream)
        results.append([joined.detach(), *(part.grad for part in parts)])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_what_only_looks_like_neighbours_is_copied() -> None:
    buffers = torch.randn(3, 60).unbind()
    apart = [buffer.clone()[20 * n : 20 * n + 20].view(4, 5) for n, buffer in enumerate(buffers)]
    turned = [part.view(5, 4).t() for part in buffers[0].clone().chunk(3)]
    for parts in (apart, turned):
        assert not are_neighbours(parts)
        assert torch.equal(side_by_side(*parts), torch.cat(parts))


# -- which kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "width", "capability", "chosen"),
    [
        ("auto", "cuda", torch.bfloat16, 64, (9, 0), "flash"),
        ("auto", "cuda", torch.float16, 256, (8, 0), "flash"),
        ("fa3", "cuda", torch.bfloat16, 64, (9, 0), "flash"),
        ("padded", "cuda", torch.bfloat16, 64, (9, 0), "padded"),
        ("auto", "cuda", torch.float16, 64, (7, 0), "padded"),  # V100
        ("flash", "cuda", torch.float32, 64, (9, 0), "padded"),  # scored in float32
        ("auto", "cuda", torch.bfloat16, 12, (9, 0), "padded"),
        ("auto", "cuda", torch.bfloat16, 264, (9, 0), "padded"),
        ("auto", "cpu", torch.bfloat16, 64, None, "grouped"),
        ("flash", "cpu", torch.float32, 64, None, "grouped"),  # scored on a CPU
        ("padded", "cpu", torch.float32, 64, None, "padded"),
        ("flash", "meta", torch.bfloat16, 64, None, "flash"),
    ],
)
def test_the_kernel_follows_from_setting_device_and_dtype(
    asked, device, dtype, width, capability, chosen, monkeypatch
) -> None:
    monkeypatch.setattr(attention_kernels, "device_capability", lambda device: capability)
    assert choose_kernel(asked, torch.device(device), dtype, width) == chosen


@pytest.fixture
def activated(monkeypatch) -> list[str]:
    """FlashAttention 3 and 4 installed, and what torch was asked to activate."""
    names: list[str] = []
    monkeypatch.setattr(attention_kernels, "is_installed", lambda kernel: True)
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", names.append)
    return names


@pytest.mark.parametrize(
    ("asked", "dropout_p", "dtype", "capability", "words", "impls"),
    [
        ("auto", 0.0, torch.bfloat16, (9, 0), "FlashAttention 3", ["FA3"]),
        ("auto", 0.0, torch.bfloat16, (10, 0), "FlashAttention 4", ["FA4"]),
        ("auto", 0.0, torch.bfloat16, (8, 0), "FlashAttention 2", []),
        ("auto", 0.1, torch.bfloat16, (9, 0), "FlashAttention 2", []),
        ("flash", 0.0, torch.bfloat16, (9, 0), "FlashAttention 2", []),
        ("fa4", 0.0, torch.float16, (9, 0), "FlashAttention 4", ["FA4"]),
        ("auto", 0.0, torch.float32, (9, 0), "padded rows.*float32", []),
        ("auto", 0.1, torch.float16, (7, 0), "padded rows.*7.0", []),
        ("padded", 0.0, torch.bfloat16, (9, 0), "padded rows", []),
        ("auto", 0.1, torch.float32, None, "rows grouped by length", []),
    ],
)
def test_a_run_says_which_kernel_it_uses(
    asked, dropout_p, dtype, capability, words, impls, activated
) -> None:
    import re

    assert re.match(words, activate_kernel(asked, dropout_p, dtype, 64, capability))
    assert activated == impls


@pytest.mark.parametrize(
    ("asked", "dropout_p", "dtype", "capability", "words"),
    [
        ("fa3", 0.0, torch.bfloat16, (9, 0), "fa3: FlashAttention 3 is not installed: pip install"),
        ("fa4", 0.0, torch.bfloat16, (9, 0), "not installed: pip install --pre flash-attn-4"),
        ("fa3", 0.0, torch.bfloat16, (10, 0), "compute capability 9.x, but this one has 10.0"),
        (
            "fa4",
            0.1,
            torch.bfloat16,
            (9, 0),
            "does not support dropout.*attention_probs_dropout_prob=0.1",
        ),
        (
            "flash",
            0.1,
            torch.float32,
            (9, 0),
            "it requires bf16 or fp16, but the precision is float32",
        ),
        ("flash", 0.1, torch.float16, (7, 0), "8.0 or higher .Ampere., but this GPU has 7.0"),
        ("flash", 0.1, torch.bfloat16, None, "attention_kernel=flash: requires a GPU"),
    ],
)
def test_what_cannot_run_is_refused_with_the_remedy(
    asked, dropout_p, dtype, capability, words
) -> None:
    with pytest.raises(ConfigError, match=words):
        activate_kernel(asked, dropout_p, dtype, 64, capability)


def test_a_package_that_does_not_load_is_skipped_or_named(monkeypatch) -> None:
    def broken(impl: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(attention_kernels, "is_installed", lambda kernel: True)
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", broken)
    assert "FlashAttention 2" in activate_kernel("auto", 0.0, torch.bfloat16, 64, (9, 0))
    with pytest.raises(ConfigError, match=r"cannot be loaded \(undefined symbol\); pip install"):
        activate_kernel("fa3", 0.0, torch.bfloat16, 64, (9, 0))


def test_the_operators_schema_is_the_one_that_is_called() -> None:
    """Ten positional arguments, by name: a torch that reorders them is noticed here."""
    schema = torch.ops.aten._flash_attention_forward.default._schema
    assert [argument.name for argument in schema.arguments if not argument.kwarg_only] == [
        "query",
        "key",
        "value",
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "return_debug_mask",
    ]
    assert schema.returns[0].name == "output"
