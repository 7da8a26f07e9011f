"""Word, position and segment embeddings, summed, normalized, with dropout; and rotary positions.

Sizes: T tokens, H width; N heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertds.config.padded_vocabulary import padded_vocabulary
from bertds.config.recipe import ModelConfig
from bertds.model.dropout import dropout


class Embeddings(nn.Module):
    """Maps ids to the encoder's input.

    The row of [PAD] is trained like any other, as in Google's code; transformers gives it no
    gradient. The difference is visible only when [PAD] replaces a masked token at random.
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


Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each token's angles, float32 [T, 1, D]."""


def rotation(position_ids_T: Tensor, width: int, theta: float) -> Rotation:
    """Return the rotation of queries and keys at each position (RoFormer, arXiv:2104.09864).

    It is computed from the positions, so no table limits the length. It is in float32 even under
    autocast: in bfloat16, adjacent positions above 256 would get the same angle.

    Args:
        position_ids_T: int64 [T], from 0 in each row.
        width: of a head, even.
        theta: base of the wavelengths.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids_T.device)
    inverse = 1.0 / (theta ** (exponents / width))
    half_TD = position_ids_T[:, None].float() * inverse
    angles_T1D = torch.cat((half_TD, half_TD), dim=-1)[:, None, :]
    return angles_T1D.cos(), angles_T1D.sin()


def rotate(values_TND: Tensor, turn: Rotation) -> Tensor:
    """Rotate queries or keys; element i of a head's first half is paired with i of the second."""
    cos_T1D, sin_T1D = turn
    wide_TND = values_TND.float()
    first, second = wide_TND.chunk(2, dim=-1)
    turned_TND = wide_TND * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D
    return turned_TND.to(values_TND.dtype)
