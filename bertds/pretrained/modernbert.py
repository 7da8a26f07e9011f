"""The modern encoder's configuration and names in transformers (``ModernBertForMaskedLM``).

The published ModernBERT folders contain ``config.json`` and ``model.safetensors``. Settings that
``bertds.model.modern`` does not support (biases, other rotary scalings, an irregular order of local
and global layers) are refused by name instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bertds.config.recipe import ModelConfig
from bertds.errors import CheckpointError

MODEL_TYPE = "modernbert"
WORD_TABLE = "model.embeddings.tok_embeddings.weight"
VOCABULARY_BIAS = "decoder.bias"
HEADS = ("head.", "decoder.")
ENCODER_ALONE = ("embeddings.tok_embeddings.", "embeddings.norm.", "layers.", "final_norm.")
"""The beginnings of names in a saved ``ModernBertModel``, which lack the prefix ``model.``."""

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# transformers' defaults for keys that a file may leave out.
_NUMBERS = {
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "mlp_dropout": 0.0,
}
THEIRS = {
    "layer_norm_eps": "norm_eps",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_dropout_prob": "mlp_dropout",
}
"""Our names of numbers and theirs, where they differ."""
_ALLOWED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("norm_bias", (False,)),
    ("attention_bias", (False,)),
    ("mlp_bias", (False,)),
    ("classifier_bias", (False,)),
    ("decoder_bias", (True,)),
    ("tie_word_embeddings", (True,)),
    ("hidden_activation", tuple(_ACTIVATIONS)),
)


def config_to_transformers(
    config: ModelConfig, vocab_size: int, pad_token_id: int = 0
) -> dict[str, Any]:
    """Return the contents of transformers' config.json for a modern encoder.

    Both ways of writing the rotary bases and the order of layers are given: that of transformers
    5 and that of the published folders, which older versions read.
    """
    every = config.global_attn_every_n_layers
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_activation": config.hidden_act,
        "classifier_activation": config.hidden_act,
        "embedding_dropout": config.hidden_dropout_prob,
        "mlp_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "max_position_embeddings": config.max_position_embeddings,
        "local_attention": config.local_attention,
        "global_attn_every_n_layers": every,
        "layer_types": [
            _LOCAL if number % every else _GLOBAL for number in range(config.num_hidden_layers)
        ],
        "global_rope_theta": config.global_rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "rope_parameters": {
            _GLOBAL: {"rope_type": "default", "rope_theta": config.global_rope_theta},
            _LOCAL: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "initializer_range": config.initializer_range,
        "norm_eps": config.layer_norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "pad_token_id": pad_token_id,
        # transformers' defaults are ids of ModernBERT's own vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
        "tie_word_embeddings": True,
    }


def config_from_transformers(values: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """Read the config.json of a ModernBERT, of the published layout or transformers 5's.

    Returns:
        The model's configuration and the vocabulary size.

    Raises:
        CheckpointError: a switch that is not supported, or a value of the wrong type; names it.
    """
    # Switches that this implementation lacks must have their default.
    for key, allowed in _ALLOWED:
        _check(key, values.get(key, allowed[0]), allowed)
    act = _ACTIVATIONS[values.get("hidden_activation", "gelu")]
    head_act = values.get("classifier_activation", "gelu")
    _check("classifier_activation", _ACTIVATIONS.get(head_act, head_act), (act,))
    vocab_size = values.get("vocab_size", 50368)
    if not isinstance(vocab_size, int):
        raise CheckpointError(f"config.json: vocab_size={vocab_size!r}, not a number")
    # Missing values have the defaults of transformers.
    numbers = {key: values.get(key, default) for key, default in _NUMBERS.items()}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {key}={value!r} is not a number")
    numbers["global_attn_every_n_layers"] = _global_every(values, numbers)
    config = ModelConfig(
        style="modern",
        next_sentence=False,
        hidden_act=act,  # type: ignore[arg-type]
        layer_norm_eps=numbers.pop("norm_eps"),
        attention_probs_dropout_prob=numbers.pop("attention_dropout"),
        hidden_dropout_prob=numbers.pop("mlp_dropout"),
        global_rope_theta=_theta(values, _GLOBAL, "global_rope_theta", 160_000.0),
        local_rope_theta=_theta(values, _LOCAL, "local_rope_theta", 10_000.0),
        **numbers,
    )
    return config, vocab_size


def _check(key: str, found: object, allowed: tuple[object, ...]) -> None:
    if found not in allowed:
        raise CheckpointError(
            f"config.json: {key}={found!r} is not supported; allowed: "
            f"{', '.join(map(repr, allowed))}"
        )


def _global_every(values: Mapping[str, Any], numbers: Mapping[str, Any]) -> int:
    """Return every how many layers one is global; ``layer_types`` decides where it is given."""
    kinds = values.get("layer_types")
    if kinds is None:
        return int(numbers["global_attn_every_n_layers"])
    layers = int(numbers["num_hidden_layers"])
    # The first global layer after layer 0 gives the period. Without one, any period that is not
    # shorter than the model has the same layers, so the file's own is kept.
    later = [n for n, kind in enumerate(kinds) if n and kind == _GLOBAL]
    every = later[0] if later else max(layers, 1, int(numbers["global_attn_every_n_layers"]))
    if list(kinds) != [_LOCAL if n % every else _GLOBAL for n in range(layers)]:
        raise CheckpointError(
            "config.json: layer_types is not supported: it must be one full_attention, then "
            "always the same number of sliding_attention"
        )
    return every


def _theta(values: Mapping[str, Any], kind: str, old_key: str, default: float) -> float:
    """Return the rotary base of one kind of layer, from either way of writing it."""
    if values.get("rope_scaling"):
        raise CheckpointError(
            f"config.json: rope_scaling={values['rope_scaling']!r} is not supported; allowed: null"
        )
    found = (values.get("rope_parameters") or {}).get(kind) or {}
    _check(f"rope_parameters.{kind}.rope_type", found.get("rope_type", "default"), ("default",))
    theta = found.get("rope_theta", values.get(old_key, default))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise CheckpointError(f"config.json: {old_key}={theta!r} is not a positive number")
    return float(theta)
