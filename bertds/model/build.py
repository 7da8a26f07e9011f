"""Builds the model that a configuration describes: the original BERT or the modern encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bertds.config.recipe import ModelConfig
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from bertds.model.modern import ModernBertForMaskedLM
from bertds.system.memory import cpu_memory_total

PreTrainingModel = BertForPreTraining | ModernBertForMaskedLM
"""Both models have the same arguments and the same output."""
_ROWS = ("vocab_size", "max_position_embeddings", "type_vocab_size")
_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", *_ROWS)
_LAYER_OVERHEAD = 50_000
"""Bytes of a layer's modules and tensors without their values, for models of many tiny layers."""


def build_model(config: ModelConfig, vocab_size: int) -> PreTrainingModel:
    """Return a model with random weights.

    Args:
        config: ``config.style`` decides which model.
        vocab_size: the real vocabulary.

    Raises:
        ConfigError: the model does not fit into this machine's memory.
    """
    check_model_size(config, vocab_size)
    if config.style == "modern":
        return ModernBertForMaskedLM(config, vocab_size)
    return BertForPreTraining(config, vocab_size)


def check_model_size(config: ModelConfig, vocab_size: int) -> None:
    """Refuse an architecture that is larger than this machine's memory; see :func:`check_size`."""
    check_size({**asdict(config), "vocab_size": vocab_size}, "model.")


def check_size(sizes: Mapping[str, Any], prefix: str) -> None:
    """Refuse a model that is larger than the machine's memory, before any part of it is created.

    A configuration of 100 bytes can ask for any size. The kernel would kill the process in the
    middle, or start to swap.

    Args:
        sizes: keys of a Hugging Face configuration and their values; others are ignored.
        prefix: of the keys, for the message.

    Raises:
        ConfigError: names the sizes, the memory that they need, and the memory of the machine.
    """
    known = {name: sizes[name] for name in _SIZES if type(sizes.get(name)) is int}
    width, layers = known.get("hidden_size", 0), known.get("num_hidden_layers", 0)
    rows = sum(known.get(name, 0) for name in _ROWS)
    layer = 4 * width * width + 2 * width * known.get("intermediate_size", 0)
    needed = 4 * (layers * layer + rows * width) + layers * _LAYER_OVERHEAD
    there = cpu_memory_total()
    if needed > there:
        told = ", ".join(f"{prefix}{name}={value}" for name, value in known.items())
        raise ConfigError(
            f"{told}: a model of {needed / 1e9:,.0f} GB in float32, but this machine has "
            f"{there / 1e9:,.0f} GB"
        )
