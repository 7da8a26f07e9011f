"""Weights of masked tokens by their frequency: rare ones may count more."""

from __future__ import annotations

import numpy as np
import torch

from bertds.config.recipe import Config
from bertds.data.sources.base import Source
from bertds.errors import ConfigError
from bertds.model.build import PreTrainingModel
from bertds.model.heads import weigh_words


def word_weights(counts_K: np.ndarray, power: float) -> np.ndarray:
    """Return (1 / frequency) ** power per token, with a mean of 1 over the text.

    Args:
        counts_K: int64 [K], how often each token occurs in the text; 0 counts as 1.
        power: 0 gives 1 for all.

    Returns:
        float32 [K].
    """
    shares = np.maximum(counts_K, 1) / np.maximum(counts_K, 1).sum()
    weights = shares**-power
    return np.asarray(weights / (shares * weights).sum(), np.float32)


def use_word_weights(model: PreTrainingModel, config: Config, source: Source) -> None:
    """Give the model the token weights of the training text if the recipe asks for them.

    Raises:
        ConfigError: the data contains no token counts.
    """
    power = config.data.rare_token_power
    if not power:
        return
    counts = source.token_counts()
    if counts is None:
        raise ConfigError(
            f"data.rare_token_power={power}: these files do not contain word frequencies; prepare "
            "the text as token shards, or set data.rare_token_power=0"
        )
    weigh_words(model, torch.from_numpy(word_weights(counts, power)))
