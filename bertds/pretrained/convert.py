"""Writes a model in the format of Hugging Face or of NVIDIA DeepLearningExamples (DLE)."""

from __future__ import annotations

from pathlib import Path

import torch

from bertds.data.tokenizer_folder import tokenizer_files
from bertds.data.vocabulary import load_tokenizer_info
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import CheckpointError
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.hf_folder import write_model
from bertds.pretrained.load import PretrainedModel
from bertds.pretrained.output_folder import fresh_folder
from bertds.system.atomic_files import write_json


def convert(
    trained: PretrainedModel, to: str, out: Path, *, cased: bool = False, overwrite: bool = False
) -> Path:
    """Write an opened model. The folder becomes visible only when it is complete.

    Args:
        trained: a model of :func:`opened`.
        to: hf or dle.
        out: must be absent or empty, or with ``overwrite`` an earlier conversion.
        cased: the vocabulary is cased. Without it the run, a file next to the vocabulary or the
            vocabulary itself decides.
        overwrite: replace an earlier conversion.

    Raises:
        ConfigError: ``out`` is not empty.
        CheckpointError: a Hugging Face folder needs a vocabulary, but there is none; or DLE cannot
            use the tokenizer.
    """
    tokenizer = trained.tokenizer_folder
    if to == "hf" and tokenizer is None:
        raise CheckpointError(f"{trained.origin}: vocab.txt is missing; give --vocab FILE")
    with fresh_folder(out, overwrite=overwrite) as folder:
        if to == "hf" and tokenizer is not None:
            write_model(
                folder,
                trained.model,
                tokenizer_files(tokenizer),
                pad_token_id=trained.pad_token_id,
                rules=WordPieceRules.of(lower_case=False) if cased else trained.rules,
            )
        else:
            _write_dle(trained, folder)
    return out


def _write_dle(trained: PretrainedModel, folder: Path) -> None:
    config = hf_config.config_to_transformers(trained.config, trained.vocab_size)
    # DLE computes the tanh form whatever the value is, and accepts only this value.
    config["hidden_act"] = "gelu"
    for key in ("architectures", "pad_token_id", "tie_word_embeddings", "model_type"):
        config.pop(key)
    write_json(folder / "bert_config.json", config)
    if trained.config.hidden_act == "gelu":
        print("note: the model was trained with the erf GELU; DLE uses the tanh form")
    step = int(trained.manifest.get("step", 0))
    state = {
        name: tensor.clone() for name, tensor in hf_weights.to_dle_state_dict(trained.model).items()
    }
    state["cls.predictions.decoder.weight"] = state[hf_weights.WORD_TABLE]  # tied, stored once
    # Through a file of Python, since torch's own hides the error of a full disk.
    with open(folder / f"ckpt_{step}.pt", "wb") as file:
        torch.save({"model": state, "optimizer": {}, "epoch": 0}, file)
    if trained.tokenizer_folder is not None:
        tokenizer = load_tokenizer_info(trained.tokenizer_folder)
        if not tokenizer.is_wordpiece:
            raise CheckpointError(
                f"{trained.origin}: DLE requires a WordPiece vocab.txt, but the tokenizer is "
                f"{tokenizer.model}; convert to hf instead"
            )
        text = "".join(f"{token}\n" for token in tokenizer.vocabulary())
        (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")
