"""Word, position and segment embeddings, summed, normalised, with dropout.

Sizes: T tokens, H width.
"""

from __future__ import annotations

from torch import Tensor, nn

from bertds.config.recipe import ModelConfig
from bertds.model.dropout import dropout

VOCABULARY_MULTIPLE = 64
"""Rows of the word table are padded to a multiple of this: matrix products like it."""


def padded_vocabulary(vocab_size: int) -> int:
    """Return how many rows the word table has inside the model."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Embeddings(nn.Module):
    """From ids to the encoder's input.

    The row of [PAD] is an ordinary one, as in the original; transformers gives it no gradient
    here. That shows only where [PAD] replaces a masked token at random.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.dropout_p = config.hidden_dropout_prob
        self.word_embeddings = nn.Embedding(padded_vocabulary(vocab_size), width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids_T: Tensor, segment_ids_T: Tensor, position_ids_T: Tensor) -> Tensor:
        """Return [T, H]."""
        summed_TH = (
            self.word_embeddings(input_ids_T)
            + self.token_type_embeddings(segment_ids_T)
            + self.position_embeddings(position_ids_T)
        )
        return dropout(self.LayerNorm(summed_TH), self.dropout_p, self.training)
