"""Writes Hugging Face folders: config.json, model.safetensors and the tokenizer's files.

Every export and conversion uses it, inside :func:`bertds.pretrained.output_folder.fresh_folder`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bertds.data import tokenizer_json
from bertds.data.model_names import TOKENIZER_PATTERNS
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary import load_tokenizer_info
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
    rules: WordPieceRules | None = None,
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
    rules: WordPieceRules | None = None,
) -> None:
    """Write the files of a Hugging Face folder.

    Args:
        folder: an existing folder, which nothing reads yet.
        config: the contents of config.json.
        weights: the tensors under transformers' names.
        tokenizer: name in the folder -> file; empty = no tokenizer.
        rules: see :func:`write_tokenizer`.

    Raises:
        DataError: see :func:`write_tokenizer`.
    """
    write_json(folder / "config.json", dict(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, tokenizer, int(config["max_position_embeddings"]), rules)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the tokenizer's files in a folder by name."""
    return {name: folder / name for name in TOKENIZER_PATTERNS if (folder / name).is_file()}


def write_tokenizer(
    folder: Path, files: Mapping[str, Path], length: int, rules: WordPieceRules | None = None
) -> None:
    """Copy a tokenizer's files; write a tokenizer_config.json if there is none.

    Args:
        folder: an existing folder.
        files: name in the folder -> file; empty = no tokenizer.
        length: maximum number of tokens of a row.
        rules: how text was treated, for a tokenizer without a tokenizer_config.json; None = as in
            its tokenizer.json or, without one, as its vocabulary suggests.

    Raises:
        DataError: there is no tokenizer_config.json, and BERT cannot use the vocabulary or the
            rules contradict it.
    """
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    if not files or tokenizer_json.CONFIG in files:
        return
    # Without this file transformers would lower-case all text, and would not know the special
    # tokens of other models.
    source = files.get(tokenizer_json.FILE) or files["vocab.txt"]
    info = load_tokenizer_info(source, *(rules or ()))
    if info.is_wordpiece:
        write_json(folder / tokenizer_json.CONFIG, info.rules.to_transformers(length))
    else:
        JsonTokenizer(source).write(folder, length)
