"""``bertds.save_pretrained``: writes a model of the user's own loop as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from bertds.data.vocabulary import TokenizerInfo
from bertds.model.build import PreTrainingModel
from bertds.pretrained.hf_folder import write_model
from bertds.pretrained.output_folder import fresh_folder


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
    with fresh_folder(folder, overwrite=overwrite) as temporary:
        write_model(
            temporary,
            model,
            {} if tokenizer is None else tokenizer.files,
            pad_token_id=0 if tokenizer is None else tokenizer.special_ids["pad"],
            rules=None if tokenizer is None else tokenizer.rules,
        )
    return folder
