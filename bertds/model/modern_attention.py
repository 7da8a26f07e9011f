"""Attention of the modern encoder: rotary positions, and layers that look only a window far.

As ``attention_kernels.py``, on flat rows of real tokens, and with the same choice of kernel:

- ``grouped``: rows of one length are one batched product. A local layer's long rows are cut into
  blocks of one window half, and each block meets itself and its two neighbours. CPU.
- ``flash``: torch's flash operator for ragged rows, which takes the window. CUDA in bf16 and fp16.
- ``padded``: pad, masked scaled_dot_product_attention, unpad. Everywhere else, and the reference.

A window of ``reach`` lets a token attend to itself and to ``reach`` tokens on each side:
transformers' ``local_attention`` is twice that.

Sizes: T tokens, N heads, D width of a head, B rows, S longest row, G rows of a group, L their
length, C blocks of W = reach tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bertds.model.dropout import dropout
from bertds.model.row_layout import RowLayout

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each token's angles, float32 [T, 1, D]."""


def rotation(position_ids_T: Tensor, width: int, theta: float) -> Rotation:
    """Return what turns queries and keys at each position (RoFormer, arXiv:2104.09864).

    Computed from the positions, so no table bounds the length. In float32 whatever autocast
    says: in bfloat16 neighbouring positions beyond 256 would get the same angle.

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
    """Turn queries or keys; the first half of a head's numbers pairs with the second."""
    cos_T1D, sin_T1D = turn
    wide_TND = values_TND.float()
    first, second = wide_TND.chunk(2, dim=-1)
    turned_TND = wide_TND * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D
    return turned_TND.to(values_TND.dtype)


def grouped_window_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None,
) -> Tensor:
    """Attend within each row; rows of one length lie side by side and are one product.

    Args:
        query_TND: already turned; rows sorted by length.
        key_TND: already turned.
        value_TND: as they are.
        layout: must know its groups.
        dropout_p: probability to drop an attention weight; 0 outside training.
        reach: how far a token looks to each side; None = through the whole row.

    Returns:
        [T, N, D].
    """
    assert layout.groups is not None
    outputs, begin = [], 0
    for rows, length in layout.groups:
        end = begin + rows * length
        if length:  # not the filler rows that were not needed
            query, key, value = (
                values[begin:end].unflatten(0, (rows, length)).transpose(1, 2)
                for values in (query_TND, key_TND, value_TND)
            )
            # Blocks pay once their three windows are shorter than the row.
            if reach is not None and reach > 0 and length > 3 * reach:
                output_GNLD = _block_attention(query, key, value, dropout_p, reach)
            else:
                output_GNLD = _row_attention(query, key, value, dropout_p, reach)
            outputs.append(output_GNLD.transpose(1, 2).flatten(0, 1))
        begin = end
    return torch.cat(outputs)


def _row_attention(
    query_GNLD: Tensor, key_GNLD: Tensor, value_GNLD: Tensor, dropout_p: float, reach: int | None
) -> Tensor:
    length, width = query_GNLD.shape[-2:]
    scores_GNLL = (query_GNLD * width**-0.5) @ key_GNLD.transpose(-1, -2)
    if reach is not None and length > reach + 1:
        place_L = torch.arange(length, device=query_GNLD.device)
        far_LL = (place_L[:, None] - place_L).abs() > reach
        scores_GNLL = scores_GNLL.masked_fill(far_LL, -torch.inf)
    weights_GNLL = dropout(scores_GNLL.softmax(-1), dropout_p, training=True)
    return weights_GNLL @ value_GNLD


def _block_attention(
    query_GNLD: Tensor, key_GNLD: Tensor, value_GNLD: Tensor, dropout_p: float, reach: int
) -> Tensor:
    """The same in time and memory of length * reach instead of length squared."""
    length, width = query_GNLD.shape[-2:]
    blocks = -(-length // reach)
    missing = blocks * reach - length
    # Queries in blocks [G, N, C, W, D]; keys and values of three blocks each [G, N, C, 3 W, D].
    query = F.pad(query_GNLD * width**-0.5, (0, 0, 0, missing)).unflatten(2, (blocks, reach))
    around = (0, 0, reach, reach + missing)
    key = F.pad(key_GNLD, around).unfold(2, 3 * reach, reach)  # [G, N, C, D, 3 W]
    value = F.pad(value_GNLD, around).unfold(2, 3 * reach, reach).transpose(-1, -2)
    # Which of its three blocks' keys a query may see: the same for every block, but for the ends.
    own_W1 = torch.arange(reach, device=query.device)[:, None]
    offset_3W = torch.arange(3 * reach, device=query.device) - reach
    near_W3W = (offset_3W - own_W1).abs() <= reach
    first_C11 = torch.arange(0, blocks * reach, reach, device=query.device)[:, None, None]
    key_C13W = first_C11 + offset_3W
    near = near_W3W & (key_C13W >= 0) & (key_C13W < length)
    # A filler query at the end may have no neighbour at all: it looks at everything instead,
    # since a row of minus infinities would be NaN. Its output is cut off.
    near = near | (first_C11 + own_W1 >= length)
    scores = (query @ key).masked_fill(~near, -torch.inf)
    weights = dropout(scores.softmax(-1), dropout_p, training=True)
    return (weights @ value).flatten(2, 3)[:, :, :length]


def flash_window_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None,
) -> Tensor:
    """Attend with the flash kernels for ragged rows. Same arguments and result as above."""
    cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
    window = -1 if reach is None else reach
    # torch's public function for ragged rows has no dropout; the operator below it has.
    output_TND: Tensor = torch.ops.aten._flash_attention_forward(
        query_TND,
        key_TND,
        value_TND,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        dropout_p,
        False,
        False,
        window_size_left=window,
        window_size_right=window,
    )[0]
    return output_TND


def padded_window_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None,
) -> Tensor:
    """Pad the rows to the longest, attend under a mask, drop the padding again.

    Same arguments and result as :func:`grouped_window_attention`, for rows in any order.
    """
    tokens, columns = query_TND.shape[0], layout.max_seqlen
    slots_T = layout.padded_slots(tokens, columns)

    def padded(values_TND: Tensor) -> Tensor:
        empty = values_TND.new_zeros((layout.rows * columns, *values_TND.shape[1:]))
        filled = empty.index_copy(0, slots_T, values_TND)
        return filled.unflatten(0, (layout.rows, columns)).transpose(1, 2)

    place_S = torch.arange(columns, device=slots_T.device)
    seen = (place_S < layout.cu_seqlens.diff()[:, None])[:, None, None, :]
    if reach is not None:
        near_SS = (place_S[:, None] - place_S).abs() <= reach
        # Padding queries past a short row would see nothing; they see what is near instead.
        padding = (place_S >= layout.cu_seqlens.diff()[:, None])[:, None, :, None]
        seen = (seen | padding) & near_SS
    output_BNSD = F.scaled_dot_product_attention(
        padded(query_TND), padded(key_TND), padded(value_TND), attn_mask=seen, dropout_p=dropout_p
    )
    return output_BNSD.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


WINDOW_KERNELS = {
    "flash": flash_window_attention,
    "grouped": grouped_window_attention,
    "padded": padded_window_attention,
}


def window_attend(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None,
) -> Tensor:
    """Attend with the layout's kernel; same arguments and result as above."""
    arguments = (query_TND, key_TND, value_TND, layout, dropout_p, reach)
    return WINDOW_KERNELS[layout.kernel](*arguments)
