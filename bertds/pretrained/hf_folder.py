"""Writes Hugging Face folders: config.json, model.safetensors and the tokenizer's files.

Every export and conversion uses it, inside :func:`bertds.pretrained.output_folder.fresh_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bertds.data.tokenizer_folder import write_tokenizer
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.model.build import PreTrainingModel
from bertds.pretrained import hf_config, hf_weights
from bertds.system.atomic_files import write_json


def write_model(
    folder: Path,
    model: PreTrainingModel,
    tokenizer: Mapping[str, Path],
    *,
    pad_token_id: int,
    rules: WordPieceRules | None,
) -> None:
    """Write one of our models under transformers' names; see :func:`write_hf_folder`."""
    config = hf_config.config_to_transformers(model.config, model.vocab_size, pad_token_id)
    weights = hf_weights.to_transformers_state_dict(model)
    write_hf_folder(folder, config, weights, tokenizer, rules)


def write_hf_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: dict[str, Tensor],
    tokenizer: Mapping[str, Path],
    rules: WordPieceRules | None,
) -> None:
    """Write the files of a Hugging Face folder.

    Args:
        folder: an existing folder, which nothing reads yet.
        config: the contents of config.json.
        weights: the tensors under transformers' names.
        tokenizer: name in the folder -> file; empty = no tokenizer.
        rules: see :func:`bertds.data.tokenizer_folder.write_tokenizer`.

    Raises:
        DataError: as there.
    """
    write_json(folder / "config.json", dict(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, tokenizer, int(config["max_position_embeddings"]), rules)
