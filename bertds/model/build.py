"""Makes the model that a configuration describes: the original BERT or the modern encoder."""

from __future__ import annotations

from bertds.config.recipe import ModelConfig
from bertds.model.bert import BertForPreTraining
from bertds.model.modern import ModernBertForMaskedLM

PreTrainingModel = BertForPreTraining | ModernBertForMaskedLM
"""Either model: the same arguments and the same output."""


def build_model(config: ModelConfig, vocab_size: int) -> PreTrainingModel:
    """Return a model with random weights.

    Args:
        config: ``config.style`` decides which.
        vocab_size: the real vocabulary.
    """
    if config.style == "modern":
        return ModernBertForMaskedLM(config, vocab_size)
    return BertForPreTraining(config, vocab_size)
