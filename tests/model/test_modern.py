"""The modern encoder: transformers' ModernBERT to rounding, in every way of computing it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from bertds.config.recipe import ModelConfig
from bertds.errors import CheckpointError
from bertds.model.attention_kernels import attend, grouped_attention, padded_attention
from bertds.model.build import build_model
from bertds.model.compile_layers import compile_layers
from bertds.model.modern import ModernBertForMaskedLM
from bertds.model.row_layout import RowLayout
from bertds.optim.weight_decay import is_decayed
from bertds.pretrained.hf_config import config_from_transformers, config_to_transformers
from bertds.pretrained.hf_weights import load_transformers_state_dict, to_transformers_state_dict
from bertds.pretrained.load import load_pretrained
from tests.support.padded_rows import flatten_padded

WORDS = 101  # not a multiple of 64, so that there are padded rows

MODERN = ModelConfig(
    style="modern",
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=1024,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-5,
    local_attention=16,
    next_sentence=False,
)


def make_pair(config: ModelConfig) -> tuple[ModernBertForMaskedLM, Any]:
    """Return ours and transformers' with the same random weights."""
    torch.manual_seed(1)
    values = config_to_transformers(config, WORDS)
    reference = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**values, attn_implementation="eager")
    )
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.15)
    ours = build_model(config, WORDS)
    assert isinstance(ours, ModernBertForMaskedLM)
    assert load_transformers_state_dict(ours, reference.state_dict()) == ([], [])
    return ours, reference


def padded_batch(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels of three ragged rows, the longest of ``length``."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([length // 3, length, length - 5])
    real = torch.arange(length) < lengths[:, None]
    ids = torch.randint(1, WORDS, real.shape, generator=generator) * real
    masked = (torch.rand(real.shape, generator=generator) < 0.2) & real
    labels = torch.where(masked, torch.randint(0, WORDS, real.shape, generator=generator), -100)
    return ids, real.long(), labels


def ours_of(ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Return the batch as arguments of our forward, and the slots of its tokens."""
    flat = flatten_padded(ids, mask)._asdict()
    slots = flat.pop("slots")
    flat_labels = labels.flatten()[slots]
    positions = (flat_labels != -100).nonzero().squeeze(1)
    return flat | {"masked_lm_positions": positions, "masked_lm_ids": flat_labels[positions]}, slots


@pytest.mark.parametrize(
    ("length", "changes"),
    [
        (128, {}),
        (128, {"hidden_act": "gelu_new", "global_attn_every_n_layers": 2, "local_attention": 6}),
        (128, {"global_attn_every_n_layers": 1, "global_rope_theta": 10_000.0}),
        (128, {"activation_checkpointing": "full", "local_attention": 128}),
        (1024, {"num_hidden_layers": 2, "local_attention": 128}),
    ],
)
def test_logits_and_every_gradient_are_transformers(length: int, changes: dict[str, Any]) -> None:
    ours, theirs = make_pair(replace(MODERN, **changes))
    ids, mask, labels = padded_batch(length)
    arguments, slots = ours_of(ids, mask, labels)
    count = len(arguments["masked_lm_ids"])

    output = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    result = ours.train()(**arguments)
    (result.mlm_loss_sum / count).backward()

    inputs = {key: value for key, value in arguments.items() if not key.startswith("masked")}
    logits, none = ours.eval().logits(**inputs, positions=torch.arange(len(slots)))
    assert none is None
    torch.testing.assert_close(logits, output.logits.flatten(0, 1)[slots], rtol=0, atol=1e-5)
    assert float(result.mlm_loss_sum.detach()) / count == pytest.approx(
        float(output.loss.detach()), rel=1e-6
    )
    assert float(result.nsp_loss_sum) == 0.0
    right = (output.logits.argmax(-1) == labels).sum()
    assert int(result.mlm_correct) == int(right)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        words = wanted[name].shape[0]
        torch.testing.assert_close(
            parameter.grad[:words], wanted[name].grad, rtol=0, atol=1e-5, msg=name
        )
        assert not parameter.grad[words:].any()


def test_it_starts_as_transformers_starts() -> None:
    config = replace(MODERN, hidden_size=64, intermediate_size=96)
    torch.manual_seed(0)
    ours = dict(build_model(config, 3_000).named_parameters())
    theirs = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**config_to_transformers(config, 3_000))
    )
    for name, parameter in theirs.named_parameters():
        found = ours[name][: parameter.shape[0]].detach()
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(found, parameter), name
            continue
        assert float(found.std()) == pytest.approx(float(parameter.detach().std()), rel=0.05), name
        assert float(found.abs().max()) == pytest.approx(
            float(parameter.detach().abs().max()), 0.02
        )


@pytest.mark.parametrize("reach", [None, 1, 3, 8])
def test_grouped_and_padded_attention_agree(reach: int | None) -> None:
    """Rows shorter than the window, of some windows, and of many (computed in blocks)."""
    torch.manual_seed(0)
    groups = ((2, 61), (1, 24), (3, 9), (1, 1), (1, 0))
    lengths = [length for rows, length in groups for _ in range(rows)]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    parts = torch.randn(3, sum(lengths), 2, 8).unbind(0)
    sorted_rows = RowLayout(cu_seqlens=starts, max_seqlen=61, groups=groups)
    unknown = replace(sorted_rows, groups=None)  # the kernels are called by name
    results = []
    for way, layout in (
        (grouped_attention, sorted_rows),
        (padded_attention, unknown),
    ):
        inputs = [part.clone().requires_grad_() for part in parts]
        output = way(*inputs, layout, 0.0, reach)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append([output.detach(), *(part.grad for part in inputs)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def test_a_window_costs_its_length_not_the_rows() -> None:
    """8,192 tokens: the scores of a local layer stay below what 3 windows per token make."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.untyped_storage().nbytes() // 4)
            return result

    parts = torch.randn(3, 8192, 1, 4).unbind(0)
    layout = RowLayout(
        cu_seqlens=torch.tensor([0, 8192], dtype=torch.int32),
        max_seqlen=8192,
        groups=((1, 8192),),
        kernel="grouped",
    )
    with torch.no_grad(), Watch():
        attend(*parts, layout, 0.0, 64)
    assert largest <= 8192 * 3 * 64


@pytest.mark.parametrize("reach", [None, 64])
def test_the_flash_branch_runs_on_meta_tensors(reach: int | None) -> None:
    """The GPU's branch, forward and backward, with dropout: what the operator is asked for."""
    asked: list[Any] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if "flash_attention" in str(func):
                asked.append((func.name(), kwargs))
            return func(*args, **(kwargs or {}))

    wqkv = torch.empty(50, 3, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    starts = torch.empty(4, dtype=torch.int32, device="meta")
    with Watch():
        output = attend(
            *wqkv.unbind(1), RowLayout(cu_seqlens=starts, max_seqlen=30, kernel="flash"), 0.1, reach
        )
        output.sum().backward()
    assert output.shape == (50, 2, 16) and wqkv.grad.shape == wqkv.shape
    forward, backward = asked
    assert forward[0] == "aten::_flash_attention_forward"
    assert backward[0] == "aten::_flash_attention_backward"
    for _, kwargs in asked:
        assert kwargs.get("window_size_left") == kwargs.get("window_size_right") == reach


def on_meta(config: ModelConfig) -> tuple[Any, dict[str, Any]]:
    """A model in bfloat16 on the GPU's path, and a batch for it."""
    with torch.device("meta"):
        model = build_model(replace(config, attention_kernel="flash"), WORDS).to(torch.bfloat16)
        ids, starts = torch.empty(40, dtype=torch.int64), torch.empty(3, dtype=torch.int32)
    return model, {
        "input_ids": ids,
        "segment_ids": ids,
        "position_ids": ids,
        "cu_seqlens": starts,
        "max_seqlen": 30,
        "masked_lm_positions": ids[:5],
        "masked_lm_ids": ids[:5],
    }


def test_a_whole_model_runs_on_meta_tensors_in_bfloat16() -> None:
    model, arguments = on_meta(replace(MODERN, hidden_size=64))
    model(**arguments).mlm_loss_sum.backward()
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == torch.bfloat16


@pytest.mark.slow
def test_whole_layers_are_one_graph_per_kind() -> None:
    """On the GPU's path: the first layer, the local ones, the other global ones; any shape."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    config = replace(MODERN, hidden_size=64, num_hidden_layers=6, attention_probs_dropout_prob=0.1)
    model, arguments = on_meta(config)
    assert compile_layers(model, "meta", backend="aot_eager")
    for tokens in (40, 33, 36, 21):
        per_token = ("input_ids", "segment_ids", "position_ids")
        shorter = {name: arguments[name][:tokens] for name in per_token}
        model(**{**arguments, **shorter, "max_seqlen": tokens - 9}).mlm_loss_sum.backward()
        assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", "padded"])  # regions; whole layers, as on a GPU
def test_compiled_layers_give_the_same_numbers(kernel: Any) -> None:
    torch._dynamo.reset()
    config = replace(
        MODERN, num_hidden_layers=2, global_attn_every_n_layers=2, attention_kernel=kernel
    )
    plain, _ = make_pair(config)
    compiled, _ = make_pair(config)
    assert compile_layers(compiled, "cpu", backend="aot_eager")
    arguments, _ = ours_of(*padded_batch(40))
    gradients = []
    for model in (plain, compiled):
        model.train()(**arguments).mlm_loss_sum.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_only_matrices_are_decayed() -> None:
    model = build_model(MODERN, WORDS)
    for name, parameter in model.named_parameters():
        assert is_decayed(name) == (parameter.dim() == 2), name


def test_the_configuration_goes_round() -> None:
    for every in (1, 3, 9):
        config = replace(MODERN, global_attn_every_n_layers=every, global_rope_theta=10_000.0)
        values = json.loads(json.dumps(config_to_transformers(config, WORDS)))
        back, words = config_from_transformers(values)
        assert words == WORDS
        if every == 9:  # more than there are layers: the same model as with exactly as many
            back = replace(back, global_attn_every_n_layers=9)
        assert back == config
        theirs = transformers.ModernBertConfig(**values)
        assert theirs.layer_types == values["layer_types"]
        assert theirs.rope_parameters == values["rope_parameters"]


PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
"""The keys of the config.json that ModernBERT-base is published with."""


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    config, words = config_from_transformers(PUBLISHED)
    assert words == 50368
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (
        768,
        1152,
        22,
    )
    assert (config.global_rope_theta, config.local_rope_theta) == (160_000.0, 10_000.0)
    small = PUBLISHED | {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": WORDS,
        "intermediate_size": 40,
        "pad_token_id": 0,
        "local_attention": 16,
    }
    _, theirs = make_pair(MODERN)
    (tmp_path / "config.json").write_text(json.dumps(small))
    weights = {n: p.detach().contiguous() for n, p in theirs.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    trained = load_pretrained(tmp_path)
    assert trained.missing == [] and trained.unused == []
    assert trained.config.style == "modern"
    found = to_transformers_state_dict(trained.model)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_an_encoder_alone_is_loaded_and_missing_heads_are_reported() -> None:
    ours, theirs = make_pair(MODERN)
    report = load_transformers_state_dict(ours, theirs.model.state_dict())
    assert set(report.missing) == {"decoder.bias", "head.dense.weight", "head.norm.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_bias": True}, "norm_bias=True is not supported; allowed: False"),
        ({"decoder_bias": False}, "decoder_bias=False is not supported; allowed: True"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu' is not supported"),
        ({"classifier_activation": "silu"}, "classifier_activation='silu' is not supported"),
        ({"hidden_size": "768"}, "hidden_size='768' is not a number"),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
        ({"mlp_dropout": 1.5}, "mlp_dropout=1.5 must be at most 1"),
        ({"vocab_size": "x"}, "vocab_size='x', not a number"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling="),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention.rope_type='yarn' is not supported",
        ),
        ({"layer_types": ["sliding_attention"] * 22}, "layer_types is not supported"),
        ({"global_rope_theta": 0}, "global_rope_theta=0 is not a positive number"),
    ],
)
def test_unknown_switches_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: ") as caught:
        config_from_transformers(PUBLISHED | change)
    assert message in str(caught.value)
