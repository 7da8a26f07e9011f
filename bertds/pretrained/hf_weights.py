"""Weights and configuration to and from transformers and NVIDIA DLE (DeepLearningExamples).

Inside, parameters carry transformers' names, so a conversion is a copy that

- drops the padded vocabulary rows on the way out and adds zero ones on the way in,
- leaves out the tied copies (``cls.predictions.decoder.*``), which transformers ties itself,
- renames for DLE, whose linear layers with an activation are called ``dense_act``, and whose
  vocabulary is padded to a multiple of 8.

Files are read with safetensors or ``torch.load(weights_only=True)``: no code in them is run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertds.config.recipe import ModelConfig
from bertds.errors import CheckpointError
from bertds.model.build import PreTrainingModel
from bertds.pretrained import modernbert
from bertds.system.json_fields import parse_json

WORD_TABLE = "bert.embeddings.word_embeddings.weight"
VOCABULARY_BIAS = "cls.predictions.bias"
# The two styles share no name, so one list serves both.
VOCABULARY_ROWS = (WORD_TABLE, VOCABULARY_BIAS, modernbert.WORD_TABLE, modernbert.VOCABULARY_BIAS)
"""Tensors with one row per word, which are padded inside."""
TIED_COPIES = {
    "cls.predictions.decoder.weight": WORD_TABLE,
    "cls.predictions.decoder.bias": VOCABULARY_BIAS,
    "decoder.weight": modernbert.WORD_TABLE,
}
DLE_VOCABULARY_MULTIPLE = 8

# DLE fuses these linear layers with their activation and names them so.
_DLE_NAME = re.compile(r"\.(intermediate|pooler|transform)\.dense_act\.")
_OUR_NAME = re.compile(r"\.(intermediate|pooler|transform)\.dense\.")
_HEADS = ("cls.", "bert.pooler.", *modernbert.HEADS)
_LAYER = re.compile(r"^(?:bert\.encoder\.layer|model\.layers)\.(\d+)\.")
_SKIPPED = re.compile(r"(^|\.)embeddings\.position_ids$")  # a buffer of old transformers
_MAX_LISTED = 4

_GELU_TO_OURS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",  # the same tanh approximation, written otherwise
    "gelu_pytorch_tanh": "gelu_new",
}


class LoadReport(NamedTuple):
    """What a state dict did not fit. Parameters in ``missing`` kept their initial values."""

    missing: list[str]
    """Our parameters that the state dict lacks (heads only; a partial encoder is refused)."""
    unexpected: list[str]
    """Tensors of the state dict that our model has no place for."""


# --------------------------------------------------------------------------------------------
# Out
# --------------------------------------------------------------------------------------------


def strip_padding(state_dict: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Return our state dict as transformers saves it: real vocabulary rows, no tied copies."""
    stripped = {}
    for name, tensor in state_dict.items():
        if name in TIED_COPIES:
            continue
        if name in VOCABULARY_ROWS:
            tensor = tensor[:vocab_size]
        stripped[name] = tensor.detach().contiguous()
    return stripped


def to_transformers_state_dict(model: PreTrainingModel) -> dict[str, Tensor]:
    """Return the model's weights under transformers' names; tensors may share its memory."""
    return strip_padding(model.state_dict(), model.vocab_size)


def to_dle_state_dict(model: PreTrainingModel) -> dict[str, Tensor]:
    """Return the model's weights as NVIDIA DLE names and pads them (key ``model`` of its file)."""
    if model.config.style == "modern":
        raise CheckpointError("model.style=modern: DLE has no such encoder; convert --to hf")
    rows = _round_up(model.vocab_size, DLE_VOCABULARY_MULTIPLE)
    state_dict = {}
    for name, tensor in to_transformers_state_dict(model).items():
        if name in (WORD_TABLE, VOCABULARY_BIAS):
            tensor = _with_rows(tensor, rows)
        state_dict[_OUR_NAME.sub(r".\1.dense_act.", name)] = tensor
    state_dict["cls.predictions.decoder.weight"] = state_dict[WORD_TABLE]
    return state_dict


def config_to_transformers(
    config: ModelConfig, vocab_size: int, pad_token_id: int = 0
) -> dict[str, Any]:
    """Return the contents of transformers' config.json for a model of ours."""
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


# --------------------------------------------------------------------------------------------
# In
# --------------------------------------------------------------------------------------------


def config_from_transformers(
    values: Mapping[str, Any], *, origin: Literal["transformers", "dle"] = "transformers"
) -> tuple[ModelConfig, int]:
    """Read a config.json (or DLE's bert_config.json).

    Args:
        values: the JSON object.
        origin: DLE writes "gelu" and computes the tanh form, so there it means gelu_new. See
            ``origin_of``.

    Returns:
        The model's configuration and the vocabulary size as the file states it (DLE states the
        unpadded one).

    Raises:
        CheckpointError: not a BERT, or a kind of BERT that is not trained here; names the key.
    """
    if values.get("model_type") == modernbert.MODEL_TYPE:
        return modernbert.config_from_transformers(values)
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
    # transformers leaves nothing out, DLE leaves out layer_norm_eps: our defaults are theirs.
    known = {field.name: field for field in fields(ModelConfig)}
    settings = {key: values[key] for key in known if key in values}
    for key, value in settings.items():
        default = known[key].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if default is not MISSING and number and not isinstance(value, int | float):
            raise CheckpointError(f"config.json: {key}={value!r} is not a number")
    act = _GELU_TO_OURS[values.get("hidden_act", "gelu")]
    settings["hidden_act"] = "gelu_new" if origin == "dle" else act
    architectures = values.get("architectures") or []
    settings["next_sentence"] = "BertForMaskedLM" not in architectures
    return ModelConfig(**settings), values["vocab_size"]


def origin_of(names: Iterable[str]) -> Literal["transformers", "dle"]:
    """Tell by its names whether a state dict comes from DLE (tanh GELU) or transformers."""
    return "dle" if any(_DLE_NAME.search(name) for name in names) else "transformers"


def load_transformers_state_dict(
    model: PreTrainingModel, state_dict: Mapping[str, Tensor]
) -> LoadReport:
    """Copy weights of transformers or DLE into a model of ours.

    Args:
        model: takes the values; its heads keep their initial ones where the source has none.
        state_dict: with or without the prefix ``bert.`` (an encoder alone).

    Returns:
        Names that were missing and names that were not used.

    Raises:
        CheckpointError: another vocabulary, another size, or encoder layers missing.
    """
    allowed_rows = {model.vocab_size}
    if origin_of(state_dict) == "dle":
        allowed_rows.add(_round_up(model.vocab_size, DLE_VOCABULARY_MULTIPLE))
    source = _our_names(state_dict)
    own = dict(model.named_parameters())
    missing = [name for name in own if name not in source]
    unexpected = [name for name in source if name not in own]
    _check_layers(model, source)
    partial = [name for name in missing if not name.startswith(_HEADS)]
    if partial:
        raise CheckpointError(
            f"the weights lack {len(partial)} of the encoder's tensors: {_listed(partial)}"
        )
    values = {}
    for name, parameter in own.items():
        if name not in source:
            continue
        tensor, shape = source[name], parameter.shape
        if name in VOCABULARY_ROWS:
            shape = torch.Size((model.vocab_size, *shape[1:]))
            if tensor.shape[0] not in allowed_rows:
                raise CheckpointError(
                    f"{name}: the weights have a vocabulary of {tensor.shape[0]} words, "
                    f"the data's tokenizer has {model.vocab_size}"
                )
            tensor = tensor[: model.vocab_size]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: the weights have shape {tuple(tensor.shape)}, "
                f"the recipe's model has {tuple(shape)}"
            )
        tensor = _with_rows(tensor, parameter.shape[0])
        values[name] = tensor
    with torch.no_grad():  # only now that all fits: a refused load changes nothing
        for name, tensor in values.items():
            own[name].copy_(tensor)
    return LoadReport(missing, unexpected)


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read a Hugging Face folder's ``config.json``.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a Hugging Face folder, or of one .safetensors, .bin or .pt file.

    A DLE checkpoint's ``model`` entry is taken by itself.

    Raises:
        CheckpointError: nothing readable there; names the file.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return _read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards_of(index):
                tensors |= _read_file(path / shard)
            return tensors
    raise CheckpointError(f"{path}: found neither model.safetensors nor pytorch_model.bin")


def _shards_of(index: Path) -> list[str]:
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a list of weight files ({error})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
    return sorted(names)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
    except Exception as error:  # whatever a damaged file makes the library raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from error
    content = load_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    return dict(content)


def load_pickle(path: Path) -> Any:
    """Read a pickle's tensors and plain values on the CPU; none of its code is run.

    Beside torch's own list only two kinds of plain values are let in, which Megatron's files hold:
    an ``argparse.Namespace`` and numpy arrays (its settings and random state).

    Raises:
        CheckpointError: it is damaged, or needs other classes; names the class.
    """
    rebuild = np.zeros(1).__reduce__()[0]  # its module's name differs between versions of numpy
    plain: list[Any] = [
        argparse.Namespace, np.ndarray, np.dtype, np.dtypes.UInt32DType,
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(plain):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        found = re.search(r"(?i)unsupported (?:global:? |class )+([\w.]+)", str(error))
        first = str(error).strip().split("\n")[0][:200]
        reason = (
            f"it needs {found[1]}; no code of a checkpoint is run" if found
            else first if re.search("[a-z]", first) and "weights_only" not in first
            else "no file of torch.save, or damaged"
        )  # fmt: skip
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from error


def _our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to our names; drop tied copies and buffers."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.")  # left by DistributedDataParallel
        name = _DLE_NAME.sub(r".\1.dense.", name)
        # The first PyTorch BERTs called LayerNorm's two so.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(modernbert.ENCODER_ALONE):
            name = f"model.{name}"
        elif name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if not _SKIPPED.search(name):
            renamed[name] = tensor
    for copy, original in TIED_COPIES.items():
        if copy not in renamed:
            continue
        tensor = renamed.pop(copy)
        if original not in renamed:
            renamed[original] = tensor
        elif not torch.equal(tensor, renamed[original]):
            raise CheckpointError(
                f"{copy} differs from {original}: a model whose word tables are not tied"
            )
    return renamed


def _check_layers(model: PreTrainingModel, source: Mapping[str, Tensor]) -> None:
    layers = {int(match[1]) for match in map(_LAYER.match, source) if match}
    expected = model.config.num_hidden_layers
    if len(layers) != expected:
        raise CheckpointError(
            f"the weights have {len(layers)} encoder layers, "
            f"the recipe's model.num_hidden_layers is {expected}"
        )


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    if tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((rows - tensor.shape[0], *tensor.shape[1:]))])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + rest
