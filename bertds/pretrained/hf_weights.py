"""Converts weights to and from transformers and NVIDIA DLE (DeepLearningExamples).

Inside bertds, parameters have transformers' names, so a conversion is a copy that

- removes the padded vocabulary rows on export and adds zero rows on import,
- leaves out the tied copies (``cls.predictions.decoder.*``), which transformers ties itself,
- renames for DLE, whose linear layers with an activation are called ``dense_act``, and whose
  vocabulary is padded to a multiple of 8.

Files are read with safetensors or ``torch.load(weights_only=True)``: no code in them is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bertds.display.words import listed
from bertds.errors import CheckpointError
from bertds.model.build import PreTrainingModel
from bertds.pretrained import modernbert

WORD_TABLE = "bert.embeddings.word_embeddings.weight"
VOCABULARY_BIAS = "cls.predictions.bias"
# The two styles have no name in common, so one list serves both.
VOCABULARY_ROWS = (WORD_TABLE, VOCABULARY_BIAS, modernbert.WORD_TABLE, modernbert.VOCABULARY_BIAS)
"""Tensors with one row per word, which are padded inside bertds."""
TIED_COPIES = {
    "cls.predictions.decoder.weight": WORD_TABLE,
    "cls.predictions.decoder.bias": VOCABULARY_BIAS,
    "decoder.weight": modernbert.WORD_TABLE,
}
DLE_VOCABULARY_MULTIPLE = 8

# DLE fuses these linear layers with their activation and names them accordingly.
_DLE_NAME = re.compile(r"\.(intermediate|pooler|transform)\.dense_act\.")
_OUR_NAME = re.compile(r"\.(intermediate|pooler|transform)\.dense\.")
_HEADS = ("cls.", "bert.pooler.", *modernbert.HEADS)
_LAYER = re.compile(r"^(?:bert\.encoder\.layer|model\.layers)\.(\d+)\.")
_SKIPPED = re.compile(r"(^|\.)embeddings\.position_ids$")  # a buffer of old transformers


class LoadReport(NamedTuple):
    """The differences from a state dict. Parameters in ``missing`` kept their initial values."""

    missing: list[str]
    """Our parameters that the state dict lacks (only heads; an incomplete encoder is refused)."""
    unexpected: list[str]
    """Tensors of the state dict that our model does not have."""


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
    """Return the model's weights with transformers' names; tensors may share its memory."""
    return strip_padding(model.state_dict(), model.vocab_size)


def to_dle_state_dict(model: PreTrainingModel) -> dict[str, Tensor]:
    """Return the weights with NVIDIA DLE's names and padding (the key ``model`` of its file)."""
    if model.config.style == "modern":
        raise CheckpointError("model.style=modern: not supported by DLE; use --to hf")
    rows = _dle_rows(model.vocab_size)
    state_dict = {}
    for name, tensor in to_transformers_state_dict(model).items():
        if name in (WORD_TABLE, VOCABULARY_BIAS):
            tensor = _with_rows(tensor, rows)
        state_dict[_OUR_NAME.sub(r".\1.dense_act.", name)] = tensor
    state_dict["cls.predictions.decoder.weight"] = state_dict[WORD_TABLE]
    return state_dict


# --------------------------------------------------------------------------------------------
# In
# --------------------------------------------------------------------------------------------


def origin_of(names: Iterable[str]) -> Literal["transformers", "dle"]:
    """Return whether a state dict comes from DLE (tanh GELU) or transformers, by its names."""
    return "dle" if any(_DLE_NAME.search(name) for name in names) else "transformers"


def load_transformers_state_dict(
    model: PreTrainingModel, state_dict: Mapping[str, Tensor]
) -> LoadReport:
    """Copy weights of transformers or DLE into our model.

    Args:
        model: receives the values; heads that the source lacks keep their initial values.
        state_dict: with or without the prefix ``bert.`` (an encoder alone).

    Returns:
        The names that were missing, and those that were not used.

    Raises:
        CheckpointError: a different vocabulary or size, or encoder layers are missing.
    """
    allowed_rows = {model.vocab_size}
    if origin_of(state_dict) == "dle":
        allowed_rows.add(_dle_rows(model.vocab_size))
    source = _our_names(state_dict)
    own = dict(model.named_parameters())
    # Only heads may be missing: an incomplete encoder would be partly random.
    missing = [name for name in own if name not in source]
    unexpected = [name for name in source if name not in own]
    _check_layers(model, source)
    partial = [name for name in missing if not name.startswith(_HEADS)]
    if partial:
        raise CheckpointError(
            f"the weights do not include {len(partial)} tensors of the encoder: "
            f"{listed(partial, 4)}"
        )
    # Check every shape before anything is copied.
    values = {}
    for name, parameter in own.items():
        if name not in source:
            continue
        tensor, shape = source[name], parameter.shape
        if name in VOCABULARY_ROWS:
            shape = torch.Size((model.vocab_size, *shape[1:]))
            if tensor.shape[0] not in allowed_rows:
                raise CheckpointError(
                    f"{name}: the weights have a vocabulary of {tensor.shape[0]} tokens, but the "
                    f"tokenizer of the data has {model.vocab_size}"
                )
            tensor = tensor[: model.vocab_size]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: the weights have shape {tuple(tensor.shape)}, but the model of the "
                f"recipe has {tuple(shape)}"
            )
        tensor = _with_rows(tensor, parameter.shape[0])
        values[name] = tensor
    with torch.no_grad():  # only now that everything fits: a refused load changes nothing
        for name, tensor in values.items():
            own[name].copy_(tensor)
    return LoadReport(missing, unexpected)


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with fewer elements in memory than their shapes need.

    With strides of 0, a pickle may describe one number as a tensor of 10^12 elements. That costs
    nothing until the first copy.

    Raises:
        CheckpointError: names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is not a plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, and "
                f"{tensor.untyped_storage().nbytes():,} bytes for it"
            )


def _our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to our names; remove tied copies and buffers."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.")  # left by DistributedDataParallel
        name = _DLE_NAME.sub(r".\1.dense.", name)
        # The first PyTorch BERTs used these names for LayerNorm's two parameters.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(modernbert.ENCODER_ALONE):
            name = f"model.{name}"
        elif name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if not _SKIPPED.search(name):
            renamed[name] = tensor
    # A tied copy is redundant, or replaces a missing original; different values cannot be loaded.
    for copy, original in TIED_COPIES.items():
        if copy not in renamed:
            continue
        tensor = renamed.pop(copy)
        if original not in renamed:
            renamed[original] = tensor
        elif not torch.equal(tensor, renamed[original]):
            raise CheckpointError(
                f"{copy} differs from {original}: models with untied embeddings are not supported"
            )
    return renamed


def _check_layers(model: PreTrainingModel, source: Mapping[str, Tensor]) -> None:
    layers = {int(match[1]) for match in map(_LAYER.match, source) if match}
    expected = model.config.num_hidden_layers
    if len(layers) != expected:
        raise CheckpointError(
            f"the weights have {len(layers)} encoder layers, but model.num_hidden_layers in the "
            f"recipe is {expected}"
        )


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    if tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((rows - tensor.shape[0], *tensor.shape[1:]))])


def _dle_rows(vocab_size: int) -> int:
    return -(-vocab_size // DLE_VOCABULARY_MULTIPLE) * DLE_VOCABULARY_MULTIPLE
