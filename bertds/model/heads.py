"""The heads on top of the encoder: pooler, masked-LM head and next-sentence head.

Sizes: B rows, M masked tokens, H width, V vocabulary (padded), K real vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertds.config.padded_vocabulary import padded_vocabulary
from bertds.config.recipe import ModelConfig
from bertds.model.encoder import Gelu
from bertds.model.losses import linear_cross_entropy

WordScores = Tensor | tuple[Tensor, Tensor]
"""Logits [M, K], or the summed loss and the number of correct words."""


class Pooler(nn.Module):
    """Linear layer and tanh on the first token of each row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_BH: Tensor) -> Tensor:
        """Return [B, H]."""
        return torch.tanh(self.dense(first_BH))


class PredictionTransform(nn.Module):
    """Linear layer, GELU and LayerNorm before the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = Gelu(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Return [M, H]."""
        return self.LayerNorm(self.activation(self.dense(hidden_MH)))


class Decoder(nn.Module):
    """The product with the word embeddings.

    ``weight`` is the same Parameter as that of the word embeddings, and ``bias`` as that of the
    head. Under ZeRO-3 a parameter is complete only inside the forward pass of a module that owns
    it, so everything that uses them is here.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter, vocab_size: int, z_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.z_weight = z_weight
        self.word_weights_K: Tensor | None = None
        """Factor of each word's gradient, float32. Not a buffer: the training data decides it."""
        self.weight = weight
        self.bias = bias

    def forward(self, hidden_MH: Tensor, labels_M: Tensor | None = None) -> WordScores:
        """Return logits [M, K], or with labels the summed loss and the number of correct ones."""
        if labels_M is None:
            return F.linear(hidden_MH, self.weight, self.bias)[..., : self.vocab_size]
        if self.word_weights_K is not None:
            self.word_weights_K = self.word_weights_K.to(hidden_MH.device)
        return linear_cross_entropy(
            hidden_MH,
            self.weight,
            self.bias,
            labels_M,
            self.vocab_size,
            self.z_weight,
            self.word_weights_K,
        )


def weigh_words(model: nn.Module, weights_K: Tensor) -> None:
    """Multiply each masked token's gradient by the weight of its word.

    Args:
        model: from ``build_model``.
        weights_K: float32 [K].
    """
    for module in model.modules():
        if isinstance(module, Decoder):
            module.word_weights_K = weights_K


class MaskedLMHead(nn.Module):
    """Transform and decoder. transformers' ``cls.predictions``."""

    def __init__(self, config: ModelConfig, vocab_size: int, word_table: nn.Parameter) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.bias = nn.Parameter(torch.zeros(padded_vocabulary(vocab_size)))
        self.decoder = Decoder(word_table, self.bias, vocab_size, config.z_loss)

    def forward(self, hidden_MH: Tensor, labels_M: Tensor | None = None) -> WordScores:
        """Return logits [M, K], or with labels the summed loss and the number of correct ones."""
        return self.decoder(self.transform(hidden_MH), labels_M)


class PreTrainingHeads(nn.Module):
    """Both heads. transformers' ``cls``."""

    def __init__(self, config: ModelConfig, vocab_size: int, word_table: nn.Parameter) -> None:
        super().__init__()
        self.predictions = MaskedLMHead(config, vocab_size, word_table)
        self.seq_relationship = nn.Linear(config.hidden_size, 2) if config.next_sentence else None
