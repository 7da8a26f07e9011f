"""Self-attention over a flat row of real tokens: no score with a padding token is computed.

Three ways to the same result; which one is taken depends on the device alone:

- ``grouped``: rows sorted by length, one batched product per length, no mask. CPU.
- ``varlen``: torch's flash kernels for ragged rows. CUDA in bf16 and fp16.
- ``padded``: pad, masked scaled_dot_product_attention, unpad. Everywhere else, and the reference.

Measured on 2 Zen 5 cores, 8 rows of 12 heads, forward and backward, dropout 0.1 (padded ->
grouped): 128 tokens 33 -> 24 ms fp32, 31 -> 17 ms bf16; 512 tokens with 37 % full rows 731 ->
179 ms fp32, 627 -> 140 ms bf16; the quick dropout mask then takes off about another half. Plain
products beat torch's CPU flash kernel even without dropout (bf16, 512: 99 -> 48 ms).

Sizes: T tokens, H width, N heads, D width of a head, B rows, S longest row, G rows of a group,
L their length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertds.config.recipe import ModelConfig
from bertds.model.dropout import dropout, dropout_add
from bertds.model.row_layout import RowLayout

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]


def grouped_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend within each row; rows of one length lie side by side and are one product.

    Args:
        qkv_T3ND: queries, keys and values of all tokens, rows sorted by length.
        layout: must know its groups.
        dropout_p: probability to drop an attention weight; 0 outside training.

    Returns:
        [T, N, D].
    """
    assert layout.groups is not None
    width = qkv_T3ND.shape[-1]
    pieces = qkv_T3ND.split([rows * length for rows, length in layout.groups])
    outputs = []
    for (rows, length), piece in zip(layout.groups, pieces, strict=True):
        if length == 0:  # filler rows that were not needed
            continue
        piece_3GNLD = piece.unflatten(0, (rows, length)).permute(2, 0, 3, 1, 4)
        query_GNLD, key_GNLD, value_GNLD = piece_3GNLD.unbind(0)
        scores_GNLL = (query_GNLD * width**-0.5) @ key_GNLD.transpose(-1, -2)
        weights_GNLL = dropout(scores_GNLL.softmax(-1), dropout_p, training=True)
        outputs.append((weights_GNLL @ value_GNLD).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def padded_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Pad the rows to the longest, attend under a mask, drop the padding again.

    Same arguments and result as :func:`grouped_attention`, for rows in any order.
    """
    tokens, columns = qkv_T3ND.shape[0], layout.max_seqlen
    slots_T = layout.padded_slots(tokens, columns)
    padded = qkv_T3ND.new_zeros((layout.rows * columns, *qkv_T3ND.shape[1:]))
    padded_BS3ND = padded.index_copy(0, slots_T, qkv_T3ND).unflatten(0, (layout.rows, columns))
    query_BNSD, key_BNSD, value_BNSD = padded_BS3ND.permute(2, 0, 3, 1, 4).unbind(0)
    lengths_B = layout.cu_seqlens.diff()
    real_BS = torch.arange(columns, device=slots_T.device) < lengths_B[:, None]
    output_BNSD = F.scaled_dot_product_attention(
        query_BNSD, key_BNSD, value_BNSD, attn_mask=real_BS[:, None, None, :], dropout_p=dropout_p
    )
    return output_BNSD.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


def varlen_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend with the flash kernels for ragged rows. Same arguments and result as above.

    ``varlen_attn`` has no dropout. With dropout, jagged nested tensors lead to the same flash
    kernel by another public door, which passes it on.
    """
    query_TND, key_TND, value_TND = qkv_T3ND.unbind(1)
    if dropout_p == 0.0 and varlen_attn is not None:
        cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
        output_TND = varlen_attn(
            query_TND, key_TND, value_TND, cu_seqlens, cu_seqlens, longest, longest
        )
        assert isinstance(output_TND, Tensor)  # a pair only where auxiliary outputs are asked for
        return output_TND
    return jagged_attention(qkv_T3ND, layout, dropout_p)


def jagged_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend on jagged nested tensors. Same arguments and result as above."""
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            # The lengths' bounds are given so that nested tensors need not ask the device. A least
            # length of 0 would rule the flash kernel out; it does skip the empty rows of fillers.
            values_TND.contiguous(),
            offsets=layout.cu_seqlens,
            min_seqlen=1,
            max_seqlen=layout.max_seqlen,
        ).transpose(1, 2)
        for values_TND in qkv_T3ND.unbind(1)
    )
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    return output.transpose(1, 2).values()


def attend(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend within each row by the way that suits the device; returns [T, N, D]."""
    if layout.groups is not None:
        return grouped_attention(qkv_T3ND, layout, dropout_p)
    width = qkv_T3ND.shape[-1]
    half = qkv_T3ND.dtype in (torch.bfloat16, torch.float16)
    if qkv_T3ND.is_cuda and half and width % 8 == 0 and width <= 256:  # what flash kernels take
        return varlen_attention(qkv_T3ND, layout, dropout_p)
    return padded_attention(qkv_T3ND, layout, dropout_p)


class SelfAttention(nn.Module):
    """Queries, keys and values in one product, then attention. transformers' ``attention.self``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.product: Callable[[Tensor, Tensor, Tensor], Tensor] = F.linear
        """What makes the one product while training; fp8.py sets another."""

    def project(self, hidden_TH: Tensor) -> Tensor:
        """Return queries, keys and values side by side, [T, 3 H]."""
        parts = (self.query, self.key, self.value)
        if hasattr(self.query.weight, "ds_id"):
            # ZeRO-3 partitions its parameters and has them whole only inside the forward of the
            # module that owns them, so each of the three must be called.
            return torch.cat([part(hidden_TH) for part in parts], dim=-1)
        # One product: bf16 on CPU 10-25 % quicker than three, fp32 the same.
        product = self.product if self.training else F.linear
        return product(
            hidden_TH,
            torch.cat([part.weight for part in parts]),
            torch.cat([part.bias for part in parts]),
        )

    def forward(self, hidden_TH: Tensor, layout: RowLayout) -> Tensor:
        """Return what each token gathers from its row, [T, H]."""
        qkv_T3ND = self.project(hidden_TH).unflatten(-1, (3, self.heads, -1))
        return attend(qkv_T3ND, layout, self.dropout_p if self.training else 0.0).flatten(1)


class SublayerOutput(nn.Module):
    """Linear, dropout, sum with the residual, LayerNorm: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.dropout_p = config.hidden_dropout_prob
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, values: Tensor, residual_TH: Tensor) -> Tensor:
        """Return ``LayerNorm(residual + dropout(dense(values)))``, [T, H]."""
        dense_TH = self.dense(values)
        return self.LayerNorm(dropout_add(dense_TH, residual_TH, self.dropout_p, self.training))


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = SublayerOutput(config.hidden_size, config)

    def forward(self, hidden_TH: Tensor, layout: RowLayout) -> Tensor:
        """Return [T, H]."""
        return self.output(self.self(hidden_TH, layout), hidden_TH)
