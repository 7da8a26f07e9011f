"""Loads a pre-trained BERT from a run, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bertds.checkpoint.find import locate
from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import parameter_count
from bertds.data.vocabulary_file import has_tokenizer
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.display.words import listed
from bertds.errors import CheckpointError
from bertds.model.build import PreTrainingModel, build_model
from bertds.pretrained import hf_config, weight_files


@dataclass(frozen=True, slots=True)
class PretrainedModel:
    """A model with its origin and properties."""

    model: PreTrainingModel
    config: ModelConfig
    vocab_size: int
    origin: Path
    """The checkpoint or Hugging Face folder that the weights were read from."""
    tokenizer_folder: Path | None
    manifest: dict[str, Any]
    """The checkpoint's manifest; empty for a Hugging Face folder."""
    missing: list[str]
    """Weights that were missing and are random."""
    unused: list[str] = field(default_factory=list)
    """Weights that this model does not have (the head of a fine-tuned one)."""
    pad_token_id: int = 0
    """Id of the token that fills rows up."""

    @property
    def rules(self) -> WordPieceRules | None:
        """The tokenizer's rules for text as in a run's manifest; None = its files decide."""
        tokenizer = self.manifest.get("tokenizer")
        if not tokenizer:
            return None
        return WordPieceRules.of(
            tokenizer["lower_case"],
            tokenizer.get("strip_accents"),
            tokenizer.get("chinese_characters"),
        )


def load_pretrained(path: Path | str, *, average: bool = True) -> PretrainedModel:
    """Load a model with its weights on the CPU in float32.

    Args:
        path: a run, a checkpoint, or a Hugging Face folder.
        average: use the moving average of the weights, if the run has one.

    Raises:
        CheckpointError: there is no model at ``path``, or it is damaged.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        config, vocab_size = hf_config.config_of(path)
        model = build_model(config, vocab_size)
        report = weight_files.load_folder(model, path)
        folder = path if has_tokenizer(path) else None
        return PretrainedModel(
            model.eval(),
            config,
            vocab_size,
            path,
            folder,
            {},
            report.missing,
            report.unexpected,
            hf_config.pad_token_id(hf_config.read_config(path), vocab_size),
        )
    reader = locate(path)
    config, vocab_size = reader.model()
    # Checked before memory is allocated: a manifest may describe a model of any size.
    saved = sum(math.prod(shape) for shape in reader.shapes.values())
    if (wanted := parameter_count(config, vocab_size)) != saved:
        raise CheckpointError(
            f"{reader.folder}: the model described in its manifest has {wanted:,} parameters, but "
            f"its tensors have {saved:,}"
        )
    model = build_model(config, vocab_size)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != reader.shapes:
        odd = sorted(name for name, _ in shapes.items() ^ reader.shapes.items())
        raise CheckpointError(
            f"{reader.folder}: parameters do not match the model in its manifest: {listed(odd, 4)}"
        )
    with torch.no_grad():
        for name, weight in reader.weights(average=average):
            parameters[name].copy_(weight)
    # A run's tokenizer is next to its checkpoints: RUN/checkpoints/step_N and RUN/tokenizer.
    run_dir = reader.folder.resolve().parent.parent
    folder = run_dir / "tokenizer"
    return PretrainedModel(
        model.eval(),
        config,
        vocab_size,
        reader.folder,
        folder if has_tokenizer(folder) else None,
        reader.manifest,
        [],
        pad_token_id=reader.manifest.get("tokenizer", {}).get("special_ids", {}).get("pad", 0),
    )
