"""Converts the model section of a recipe to transformers' config.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from bertds.config.ranges import range_of
from bertds.config.recipe import ModelConfig
from bertds.errors import CheckpointError, reason_of
from bertds.pretrained import modernbert
from bertds.system.json_fields import parse_json

_GELU_TO_OURS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",  # the same tanh approximation under another name
    "gelu_pytorch_tanh": "gelu_new",
}


def config_to_transformers(
    config: ModelConfig, vocab_size: int, pad_token_id: int = 0
) -> dict[str, Any]:
    """Return the contents of transformers' config.json for one of our models."""
    if config.style == "modern":
        return modernbert.config_to_transformers(config, vocab_size, pad_token_id)
    return {
        "architectures": ["BertForPreTraining" if config.next_sentence else "BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
    }


def pad_token_id(values: Mapping[str, Any], vocab_size: int) -> int:
    """Return the padding token of a config.json; 0, as in BERT, if it names none."""
    found = values.get("pad_token_id")
    return found if type(found) is int and 0 <= found < vocab_size else 0


def config_from_transformers(values: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """Read a config.json (or DLE's bert_config.json).

    Args:
        values: the JSON object.

    Returns:
        The model's configuration, and the vocabulary size that the file states (DLE states the
        unpadded size).

    Raises:
        CheckpointError: not a BERT, or an unsupported kind of BERT (names the key).
    """
    theirs: dict[str, str] = {}
    if values.get("model_type") == modernbert.MODEL_TYPE:
        config, vocab_size = modernbert.config_from_transformers(values)
        theirs = modernbert.THEIRS
    else:
        config, vocab_size = _bert_from_transformers(values)
    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            problem = range_of(f"model.{field.name}").problem(value)
            if not problem and isinstance(field.default, int) and value != int(value):
                problem = "must be a whole number"
            if problem:
                key = theirs.get(field.name, field.name)
                raise CheckpointError(f"config.json: {key}={value!r} {problem}")
    return config, vocab_size


def _bert_from_transformers(values: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    for key, allowed in (
        ("model_type", ("bert", modernbert.MODEL_TYPE)),
        ("position_embedding_type", ("absolute",)),
        ("is_decoder", (False,)),
        ("add_cross_attention", (False,)),
        ("tie_word_embeddings", (True,)),
        ("hidden_act", tuple(_GELU_TO_OURS)),
    ):
        if values.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"config.json: {key}={values[key]!r} is not supported; allowed: "
                f"{', '.join(map(repr, allowed))}"
            )
    if not isinstance(values.get("vocab_size"), int):
        raise CheckpointError(f"config.json: vocab_size={values.get('vocab_size')!r}, not a number")
    # transformers writes all keys, DLE omits layer_norm_eps; our defaults are the same as theirs.
    known = {field.name: field for field in fields(ModelConfig)}
    settings = {key: values[key] for key in known if key in values}
    for key, value in settings.items():
        default = known[key].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if default is not MISSING and number and wrong:
            raise CheckpointError(f"config.json: {key}={value!r} is not a number")
    settings["hidden_act"] = _GELU_TO_OURS[values.get("hidden_act", "gelu")]
    architectures = values.get("architectures") or []
    settings["next_sentence"] = "BertForMaskedLM" not in architectures
    return ModelConfig(**settings), values["vocab_size"]


def config_of(folder: Path | str) -> tuple[ModelConfig, int]:
    """Read the ``config.json`` of a Hugging Face folder; see :func:`config_from_transformers`.

    Raises:
        CheckpointError: the file is missing, or describes no supported BERT; names the file.
    """
    values = read_config(folder)
    try:
        return config_from_transformers(values)
    except CheckpointError as error:  # begins with "config.json: "
        raise CheckpointError(f"{folder}/{error}") from None


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read the ``config.json`` of a Hugging Face folder.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values
