"""The arrangement of the rows of a micro batch in one flat row of real tokens.

    flat [T]  --arrange-->  sorted by length  --restore-->  flat [T]

No layer ever computes a padding token: embeddings, linear layers and LayerNorm see ``[T, ...]``,
and attention divides the flat row at ``cu_seqlens``. Without CUDA the rows are sorted by length
first (only the ids, so it costs nothing), because adjacent rows of equal length form one batched
product without a mask.

Sizes: B rows, S longest padded row, T real tokens of all rows, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """The position of each row in the flat row of tokens."""

    cu_seqlens: Tensor
    """int32 [B + 1], on the device: row b is the tokens cu_seqlens[b] ... cu_seqlens[b + 1] - 1."""
    max_seqlen: int
    """Length of the longest row (or an upper bound)."""
    groups: tuple[tuple[int, int], ...] | None = None
    """(rows, length) of each run of equally long rows, in order; None = not known on the host."""
    kernel: str = "padded"
    """The attention kernel: a key of ``attention_kernels.KERNELS``."""
    keys: tuple[Tensor, ...] | None = None
    """The dropout keys of fused layers in this pass: three per layer, in order."""

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.cu_seqlens.numel() - 1

    def padded_slots(self, tokens: int, max_seqlen: int) -> Tensor:
        """Return int64 [T]: the slot of each token in a padded ``[B * max_seqlen]``.

        It reads no value on the host, so it does not wait for a GPU.
        """
        starts_B = self.cu_seqlens[:-1].long()
        lengths_B = self.cu_seqlens[1:].long() - starts_B
        shift_B = torch.arange(self.rows, device=starts_B.device) * max_seqlen - starts_B
        shift_T = torch.repeat_interleave(shift_B, lengths_B, output_size=tokens)
        return torch.arange(tokens, device=starts_B.device) + shift_T


class Arrangement(NamedTuple):
    """A micro batch in the order in which the encoder computes it."""

    layout: RowLayout
    token_order: Tensor | None
    """int64 [T]: the caller's index of each token; None = the caller's order is kept."""
    row_order: Tensor | None
    """int64 [B]: the caller's index of each row."""
    token_rank: Tensor | None
    """int64 [T]: the inverse of token_order, from the caller's tokens to ours."""

    def take_tokens(self, values_T: Tensor) -> Tensor:
        """Reorder one value per token from the caller's order to ours."""
        return values_T if self.token_order is None else values_T.index_select(0, self.token_order)

    def take_rows(self, values_B: Tensor) -> Tensor:
        """Reorder one value per row from the caller's order to ours."""
        return values_B if self.row_order is None else values_B.index_select(0, self.row_order)

    def find_tokens(self, indices_M: Tensor) -> Tensor:
        """Translate indices into the caller's flat row into indices into ours."""
        return indices_M if self.token_rank is None else self.token_rank[indices_M]

    def restore_tokens(self, values_T: Tensor) -> Tensor:
        """Reorder one value per token back to the caller's order."""
        return values_T if self.token_rank is None else values_T.index_select(0, self.token_rank)


def arrange(cu_seqlens: Tensor, max_seqlen: int, kernel: str = "grouped") -> Arrangement:
    """Choose the order in which the rows are computed.

    Args:
        cu_seqlens: int32 [B + 1], ascending from 0.
        max_seqlen: length of the longest row.
        kernel: the attention kernel.

    Returns:
        For ``grouped``: rows sorted by length, longest first, with the groups of equal lengths.
        Otherwise the given order: reading the lengths would make a GPU wait, and the other kernels
        accept ragged rows.
    """
    if kernel != "grouped":
        layout = RowLayout(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, kernel=kernel)
        return Arrangement(layout, None, None, None)
    lengths_B = cu_seqlens.diff().long()
    row_order = torch.argsort(lengths_B, descending=True, stable=True)
    sorted_B = lengths_B[row_order]
    groups = tuple((len(list(run)), length) for length, run in groupby(sorted_B.tolist()))
    # Already sorted: no tokens need to move.
    if torch.equal(sorted_B, lengths_B):
        layout = RowLayout(
            cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, groups=groups, kernel=kernel
        )
        return Arrangement(layout, None, None, None)
    # Each token moves by the difference between its row's old and new starts.
    sorted_cu_seqlens = torch.cat([cu_seqlens.new_zeros(1), sorted_B.cumsum(0).to(torch.int32)])
    tokens = int(cu_seqlens[-1])
    shift_B = cu_seqlens[:-1].long()[row_order] - sorted_cu_seqlens[:-1].long()
    token_order = torch.arange(tokens) + torch.repeat_interleave(shift_B, sorted_B)
    token_rank = torch.empty_like(token_order)
    token_rank[token_order] = torch.arange(tokens)
    layout = RowLayout(
        cu_seqlens=sorted_cu_seqlens, max_seqlen=max_seqlen, groups=groups, kernel=kernel
    )
    return Arrangement(layout, token_order, row_order, token_rank)
