"""Padded batches, as transformers takes them, to flat rows and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FlatRows(NamedTuple):
    """The real tokens of a padded batch, laid out flat: what the model's forward takes."""

    input_ids: Tensor
    """int64 [T]"""
    segment_ids: Tensor
    """int64 [T]"""
    position_ids: Tensor
    """int64 [T]"""
    cu_seqlens: Tensor
    """int32 [B + 1]"""
    max_seqlen: int
    slots: Tensor
    """int64 [T]: index of each token in the padded batch seen as [B * S]."""


def flatten_padded(
    input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
) -> FlatRows:
    """Drop the padding of a batch.

    Args:
        input_ids: int64 [B, S].
        attention_mask: [B, S], non-zero where the token is real.
        segment_ids: int64 [B, S]; None = all 0.

    Returns:
        The flat row. Position ids are columns of the padded batch, as transformers counts them.
        Reads the number of tokens on the host.
    """
    rows, columns = input_ids.shape
    real_BS = attention_mask.bool()
    slots = real_BS.flatten().nonzero().squeeze(1)
    lengths_B = real_BS.sum(1)
    cu_seqlens = torch.zeros(rows + 1, dtype=torch.int32, device=input_ids.device)
    cu_seqlens[1:] = lengths_B.cumsum(0)
    flat_ids = input_ids.reshape(-1)[slots]
    return FlatRows(
        input_ids=flat_ids,
        segment_ids=(
            torch.zeros_like(flat_ids) if segment_ids is None else segment_ids.reshape(-1)[slots]
        ),
        position_ids=slots % columns,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths_B.max()) if rows else 0,
        slots=slots,
    )


def pad_rows(values: Tensor, slots: Tensor, rows: int, columns: int) -> Tensor:
    """Return ``values`` [T, ...] as a padded [rows, columns, ...], zero where there is padding."""
    padded = values.new_zeros((rows * columns, *values.shape[1:]))
    return padded.index_copy(0, slots, values).unflatten(0, (rows, columns))
