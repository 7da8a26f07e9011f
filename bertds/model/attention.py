"""The first half of an encoder layer: self-attention over a flat row of real tokens.

Queries, keys and values are computed by one matrix product, although their weights are three
parameters (LAMB's trust ratio is per tensor, and checkpoints name them). :func:`join` concatenates
the three, without a copy if they are adjacent in memory, as in the flat buffers of ZeRO 1 and 2.

Attention itself is computed in bertds/model/attention_kernels.py.

Sizes: T tokens, H width, N heads, D width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx as Context

from bertds.config.recipe import ModelConfig
from bertds.model.attention_kernels import attend
from bertds.model.dropout import dropout_add
from bertds.model.row_layout import RowLayout


class Joined(NamedTuple):
    """The parameters of queries, keys and values, concatenated."""

    weight: Tensor
    """[3 H, H]"""
    bias: Tensor
    """[3 H]"""


def are_neighbours(parts: list[Tensor]) -> bool:
    """Return whether tensors of the same shape are adjacent in one storage, without a gap."""
    first = parts[0]
    storage, start, length = first.untyped_storage()._cdata, first.storage_offset(), first.numel()
    return all(
        part.is_contiguous()
        and part.untyped_storage()._cdata == storage
        and part.storage_offset() == start + index * length
        for index, part in enumerate(parts)
    )


def side_by_side(*parts: Tensor) -> Tensor:
    """Return tensors of the same shape concatenated along the first dimension, without autograd.

    The result is a view of their memory if they are adjacent in it, otherwise a copy.
    """
    first = parts[0].detach()
    if not are_neighbours(list(parts)):
        return torch.cat([part.detach() for part in parts])
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


class _Joined(torch.autograd.Function):
    """Concatenates three tensors with :func:`side_by_side`, under autograd."""

    @staticmethod
    def forward(ctx: Context, *parts: Tensor) -> Tensor:
        return side_by_side(*parts)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, ...]:
        return grad.chunk(3)


def join(parts: list[Tensor], *, in_place: bool) -> Tensor:
    """Concatenate three tensors of the same shape along the first dimension.

    Args:
        parts: each [R, ...].
        in_place: use their own memory if they are adjacent in it, instead of a copy.
    """
    if not in_place:
        return torch.cat(parts)
    joined: Tensor = _Joined.apply(*parts)
    return joined


class SelfAttention(nn.Module):
    """Queries, keys and values in one product, and attention. transformers' ``attention.self``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def joined(self) -> Joined | None:
        """Return the parameters of the one product; None if it is not possible.

        ZeRO-3 partitions parameters, and each is complete only inside the forward pass of the
        module that owns it, so each of the three must be called. The same is true for FP8 layers.
        """
        parts = (self.query, self.key, self.value)
        if hasattr(self.query.weight, "ds_id") or type(self.query) is not nn.Linear:
            return None
        # On a CPU a copy is made: there a product may depend on the alignment of its input.
        in_place = self.query.weight.device.type != "cpu"
        return Joined(
            join([part.weight for part in parts], in_place=in_place),
            join([part.bias for part in parts], in_place=in_place),
        )

    def project(self, hidden_TH: Tensor, joined: Joined | None) -> Tensor:
        """Return queries, keys and values, concatenated: [T, 3 H]."""
        if joined is None:
            parts = (self.query, self.key, self.value)
            return torch.cat([part(hidden_TH) for part in parts], dim=-1)
        # One product is 10-25% faster than three on a CPU in bf16, and as fast in fp32.
        return F.linear(hidden_TH, joined.weight, joined.bias)

    def forward(self, hidden_TH: Tensor, layout: RowLayout, joined: Joined | None) -> Tensor:
        """Return the attention output of each token, [T, H].

        Args:
            hidden_TH: the layer's input.
            layout: the rows, and the attention kernel.
            joined: the result of :meth:`joined`.
        """
        qkv_T3ND = self.project(hidden_TH, joined).unflatten(-1, (3, self.heads, -1))
        query_TND, key_TND, value_TND = qkv_T3ND.unbind(1)  # strided views
        dropout_p = self.dropout_p if self.training else 0.0
        return attend(query_TND, key_TND, value_TND, layout, dropout_p).flatten(1)


class SublayerOutput(nn.Module):
    """Linear, dropout, residual sum, LayerNorm: the end of both halves of a layer."""

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

    def forward(self, hidden_TH: Tensor, layout: RowLayout, joined: Joined | None) -> Tensor:
        """Return [T, H]."""
        return self.output(self.self(hidden_TH, layout, joined), hidden_TH)
