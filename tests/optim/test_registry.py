from __future__ import annotations

import math

import pytest
import torch
import transformers

from bertds.errors import ConfigError
from bertds.optim.settings import parse_optimizer
from bertds.optim.weight_decay import is_decayed, split_parameters


def test_lamb_variants_have_their_own_defaults() -> None:
    nvidia = parse_optimizer({"type": "Lamb", "params": {"lr": 6e-3}})
    assert (nvidia.variant, nvidia.eps, nvidia.weight_decay) == ("nvidia", 1e-6, 0.01)
    assert (nvidia.min_coeff, nvidia.max_coeff) == (0.0, math.inf)
    deepspeed = parse_optimizer({"type": "lamb", "params": {"lr": 1, "variant": "deepspeed"}})
    assert (deepspeed.min_coeff, deepspeed.max_coeff, deepspeed.eps) == (0.01, 10.0, 1e-8)
    assert deepspeed.weight_decay == 0.0


def test_muon_has_its_own_parameters() -> None:
    default = parse_optimizer({"type": "Muon", "params": {"lr": 1e-3}})
    assert (default.kind, default.momentum, default.ns_steps) == ("Muon", 0.95, 5)
    params = {"lr": 1e-3, "momentum": 0.9, "ns_steps": 6, "betas": [0.9, 0.95]}
    chosen = parse_optimizer({"type": "Muon", "params": params})
    assert (chosen.momentum, chosen.ns_steps, chosen.betas) == (0.9, 6, (0.9, 0.95))


def test_adam_means_adamw_unless_set_otherwise() -> None:
    # as in DeepSpeed
    assert parse_optimizer({"type": "Adam", "params": {"lr": 1e-4}}).kind == "AdamW"
    l2 = parse_optimizer({"type": "Adam", "params": {"lr": 1e-4, "adam_w_mode": False}})
    assert l2.kind == "Adam"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "optimizer.type=None must be one of Lamb, AdamW, Adam, Muon"),
        ({"type": "OneBitLamb"}, "has removed its 1-bit optimizers (0.19.8 has none)"),
        ({"type": "OneBitAdam"}, "has removed its 1-bit optimizers (0.19.8 has none)"),
        ({"type": "ZeroOneAdam"}, "has removed its 1-bit optimizers (0.19.8 has none)"),
        ({"type": "FusedLamb"}, 'with "variant": "deepspeed", its rule'),
        ({"type": "SGD"}, "an optimizer with two moments; use Lamb or AdamW"),
        ({"type": "Ranger"}, "unknown optimizer; allowed: Lamb, AdamW, Adam, Muon"),
        ({"type": "AdamW"}, "optimizer.params.lr is missing"),
        ({"type": "AdamW", "params": {"lr": "6e-3"}}, "lr='6e-3' must be a number"),
        ({"type": "AdamW", "params": {"lr": -1}}, "must be at least 0"),
        ({"type": "AdamW", "params": {"lr": 1, "betas": [0.9]}}, "list of two numbers"),
        ({"type": "AdamW", "params": {"lr": 1, "betas": [0.9, 1.0]}}, "must be below 1"),
        ({"type": "AdamW", "params": {"lr": 1, "beta": 1}}, "did you mean betas"),
        ({"type": "AdamW", "params": {"lr": 1, "max_grad_norm": 1}}, "gradient_clipping"),
        ({"type": "AdamW", "params": {"lr": 1, "adam_w_mode": False}}, 'use "Adam"'),
        (
            {"type": "AdamW", "params": {"lr": 1, "bias_correction": False}},
            "only supported by Lamb",
        ),
        ({"type": "AdamW", "params": {"lr": 1, "torch_adam": 1}}, "must be true or false"),
        ({"type": "AdamW", "params": {"lr": 1, "variant": "paper"}}, "not a parameter of AdamW"),
        ({"type": "AdamW", "params": 3}, "must be an object"),
        ({"type": "Muon", "params": {"lr": 1, "momentum": 1.0}}, "momentum=1.0 must be below 1"),
        ({"type": "Muon", "params": {"lr": 1, "ns_steps": 2.5}}, "a whole number from 1 to 20"),
        ({"type": "Muon", "params": {"lr": 1, "muon_lr": 1}}, "not a parameter of Muon"),
        ({"type": "Lamb", "params": {"lr": 1, "variant": "apex"}}, "nvidia, paper, deepspeed"),
        ({"type": "Lamb", "params": {"lr": 1, "min_coeff": 2, "max_coeff": 1}}, "exceeds"),
        ({"type": "Lamb", "params": {"lr": 1, "lamb_adapt": True}}, "not a parameter of Lamb"),
    ],
)
def test_wrong_settings_are_named(section: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_optimizer(section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("bert.embeddings.word_embeddings.weight", True),
        ("bert.encoder.layer.0.attention.self.query.weight", True),
        ("bert.encoder.layer.0.attention.self.query.bias", False),
        ("bert.encoder.layer.0.output.LayerNorm.weight", False),
        ("bert.encoder.layer.0.output.LayerNorm.bias", False),
        ("cls.predictions.bias", False),
        ("cls.predictions.transform.LayerNorm.weight", False),
        ("cls.seq_relationship.weight", True),
    ],
)
def test_biases_and_layer_norms_are_not_decayed(name: str, decayed: bool) -> None:
    assert is_decayed(name) is decayed


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "roberta", "xlnet"])
def test_no_layer_norm_of_transformers_is_decayed(kind: str) -> None:
    """Fine-tuning trains their models too, and each names its LayerNorms in its own way."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind))
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    names = [name for name, _ in model.named_parameters()]
    assert len(norms) > 10 and norms < set(names)
    for name in names:
        if name in norms or name.endswith(".bias"):
            assert not is_decayed(name), name
        elif name.endswith(".weight"):
            assert is_decayed(name), name


def test_tied_parameters_are_split_once_and_frozen_ones_left_out() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["b"].bias.requires_grad_(False)
    decayed, rest = split_parameters(model.named_parameters())
    assert [id(p) for p in decayed] == [id(model["a"].weight)]
    assert [id(p) for p in rest] == [id(model["a"].bias)]
