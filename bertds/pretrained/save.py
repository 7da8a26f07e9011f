"""``bertds.save_pretrained``: writes a model of the user's own loop as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from bertds.data.vocabulary import TokenizerInfo
from bertds.model.build import PreTrainingModel
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.output_folder import fresh_folder
from bertds.system.atomic_files import write_json


def save_pretrained(
    model: PreTrainingModel,
    folder: Path | str,
    tokenizer: TokenizerInfo | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a model that transformers and ``bertds.from_pretrained`` can load.

    The folder becomes visible only when it is complete.

    Args:
        model: a ``bertds.BertForPreTraining`` or ``ModernBertForMaskedLM``.
        folder: must be absent or empty, unless ``overwrite``.
        tokenizer: the tokenizer of the data, ``source.tokenizer``; None = only weights and
            configuration are written.
        overwrite: replace the result of an earlier call or of ``bertds export``.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder contains something else.
    """
    folder = Path(folder)
    pad = 0 if tokenizer is None else tokenizer.special_ids["pad"]
    with fresh_folder(folder, overwrite=overwrite) as temporary:
        write_json(
            temporary / "config.json",
            hf_config.config_to_transformers(model.config, model.vocab_size, pad_token_id=pad),
        )
        weights = hf_weights.to_transformers_state_dict(model)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, source in ({} if tokenizer is None else tokenizer.files).items():
            shutil.copyfile(source, temporary / name)
        if tokenizer is not None and not (temporary / "tokenizer_config.json").is_file():
            settings = {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": tokenizer.lower_case,
                "model_max_length": model.config.max_position_embeddings,
            }
            write_json(temporary / "tokenizer_config.json", settings)
    return folder
