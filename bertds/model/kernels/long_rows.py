"""Attention within rows of any length, as Triton kernels: a block of a row and a head at a time.

The forward pass is FlashAttention-2's (Dao 2023, algorithm 1): an online softmax over blocks of
keys, whose normalizers are kept. The backward pass computes the softmax again. A program owns a
block of a row's keys and the same block of its queries. It first runs over all queries for the
gradients of its keys and values, and then over all keys for the gradients of its queries. Each
product of queries and keys is therefore made twice, but nothing is added up in memory: the kernel
needs no float32 buffer, and the same input gives the same bits. Gradients are written next to each
other, where the next matrix product reads them, and so are their sums over the block's tokens,
which add up to the gradients of the biases.

See ``short_rows`` for rows that fit into one block, and ``add_norm`` for dropout and for how the
kernels run on a CPU.

Sizes: T tokens, N heads, D width of a head, B rows, P programs per head.
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.add_norm import VARYING, Drop
from bertds.model.kernels.launch import cdiv, kernel
from bertds.model.kernels.short_rows import LOG2_E, is_pair_kept, query_bits

PREPARED_TOKENS = 64
PREPARE_WARPS = 4


class Tile(NamedTuple):
    """How a kernel cuts its work."""

    own: int
    """Tokens of a row that a program owns."""
    step: int
    """Tokens that its loops take at a time."""
    stages: int
    """Loop turns whose inputs are in shared memory at a time."""
    warps: int


FORWARD = Tile(64, 64, 3, 4)
BACKWARD = Tile(64, 64, 2, 4)
"""The fastest of four and of three on an H100: 128 x 64 takes 1.03 and 1.18 times as long."""


@kernel(FORWARD.warps, VARYING)
def _attend(
    qkv,
    starts,
    keys,
    output,
    normalizers,
    tokens,
    scale: tl.float32,
    threshold: tl.int32,
    keep_scale: tl.float32,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """``scale`` includes log2(e), and so do the normalizers."""
    head, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    i = block * OWN + tl.arange(0, OWN)
    d = tl.arange(0, WIDTH)
    inside = i < length
    token = (start + i).to(tl.int64)
    part = HEADS * WIDTH
    at = token[:, None] * (3 * part) + head * WIDTH + d[None, :]
    query = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    largest = tl.full([OWN], -1e38, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    gathered = tl.zeros([OWN, WIDTH], tl.float32)
    if DROPOUT:
        bits = query_bits(token, head, HEADS, keys)
    # A block past the row's end has nothing to do.
    end = tl.where(block * OWN < length, length, 0)
    for low in tl.range(0, end, STEP, num_stages=STAGES):
        j = low + tl.arange(0, STEP)
        present = j < length
        other = (start + j).to(tl.int64)[:, None] * (3 * part) + head * WIDTH + d[None, :]
        key = tl.load(qkv + part + other, mask=present[:, None], other=0.0)
        value = tl.load(qkv + 2 * part + other, mask=present[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key)) * scale
        scores = tl.where(present[None, :], scores, -1e38)
        new = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            kept = is_pair_kept(bits[:, None], j[None, :], threshold)
            weights = tl.where(kept, weights, 0.0)
        gathered = tl.dot(weights.to(query.dtype), value, gathered * shrink[:, None])
        largest = new
    total = tl.maximum(total, 1e-38)  # nothing was added up in a block past the row's end
    gathered *= (keep_scale / total)[:, None]
    to = token[:, None] * part + head * WIDTH + d[None, :]
    tl.store(output + to, gathered.to(query.dtype), mask=inside[:, None])
    tl.store(normalizers + head * tokens + token, largest + tl.log2(total), mask=inside)


@kernel(PREPARE_WARPS, VARYING)
def _prepare(
    grad_output,
    output,
    keys,
    deltas,
    hashes,
    tokens,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Each query's product of the output and its gradient (D of the paper), and its hash."""
    head = tl.program_id(0)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    inside = token < tokens
    at = token[:, None] * (HEADS * WIDTH) + head * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(output + at, mask=inside[:, None], other=0.0).to(tl.float32)
    dy = tl.load(grad_output + at, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(deltas + head * tokens + token, tl.sum(x * dy, 1), mask=inside)
    if DROPOUT:
        bits = query_bits(token, head, HEADS, keys).to(tl.int32, bitcast=True)
        tl.store(hashes + head * tokens + token, bits, mask=inside)


@kernel(BACKWARD.warps, VARYING)
def _attend_backward(
    qkv,
    starts,
    grad_output,
    normalizers,
    deltas,
    hashes,
    grad_qkv,
    column_sums,
    tokens,
    scale: tl.float32,
    log2_scale: tl.float32,
    threshold: tl.int32,
    keep_scale: tl.float32,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Tokens past the row's end are zeros with a normalizer of infinity: they have no weight."""
    head, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    own = block * OWN + tl.arange(0, OWN)
    d = tl.arange(0, WIDTH)
    inside = own < length
    token = (start + own).to(tl.int64)
    part = HEADS * WIDTH
    at = token[:, None] * (3 * part) + head * WIDTH + d[None, :]
    end = tl.where(block * OWN < length, length, 0)
    sums = column_sums + (row * tl.num_programs(1) + block) * (3 * part) + head * WIDTH + d

    # Gradients of this block's keys and values. Scores are transposed: keys by queries.
    key = tl.load(qkv + part + at, mask=inside[:, None], other=0.0)
    value = tl.load(qkv + 2 * part + at, mask=inside[:, None], other=0.0)
    grad_key = tl.zeros([OWN, WIDTH], tl.float32)
    grad_value = tl.zeros([OWN, WIDTH], tl.float32)
    for low in tl.range(0, end, STEP, num_stages=STAGES):
        i = low + tl.arange(0, STEP)
        present = i < length
        others = (start + i).to(tl.int64)
        from_query = others[:, None] * (3 * part) + head * WIDTH + d[None, :]
        from_output = others[:, None] * part + head * WIDTH + d[None, :]
        query = tl.load(qkv + from_query, mask=present[:, None], other=0.0)
        upstream = tl.load(grad_output + from_output, mask=present[:, None], other=0.0)
        normalizer = tl.load(normalizers + head * tokens + others, mask=present, other=1e38)
        delta = tl.load(deltas + head * tokens + others, mask=present, other=0.0)
        weights = tl.exp2(tl.dot(key, tl.trans(query)) * log2_scale - normalizer[None, :])
        grad_weights = tl.dot(value, tl.trans(upstream))
        dropped = weights
        if DROPOUT:
            bits = tl.load(hashes + head * tokens + others, mask=present, other=0)
            bits = bits.to(tl.uint32, bitcast=True)
            kept = is_pair_kept(bits[None, :], own[:, None], threshold)
            dropped = tl.where(kept, weights, 0.0)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_value = tl.dot(dropped.to(query.dtype), upstream, grad_value)
        grad_scores = weights * (grad_weights - delta[None, :])
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key)
    grad_value = tl.where(inside[:, None], grad_value * keep_scale, 0.0)
    grad_key = tl.where(inside[:, None], grad_key * scale, 0.0)
    to_value, to_key = grad_qkv + 2 * part + at, grad_qkv + part + at
    tl.store(to_value, grad_value.to(key.dtype), mask=inside[:, None])
    tl.store(to_key, grad_key.to(key.dtype), mask=inside[:, None])
    tl.store(sums + 2 * part, tl.sum(grad_value, 0))
    tl.store(sums + part, tl.sum(grad_key, 0))

    # Gradients of this block's queries.
    own_query = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    to = token[:, None] * part + head * WIDTH + d[None, :]
    own_upstream = tl.load(grad_output + to, mask=inside[:, None], other=0.0)
    own_normalizer = tl.load(normalizers + head * tokens + token, mask=inside, other=1e38)
    own_delta = tl.load(deltas + head * tokens + token, mask=inside, other=0.0)
    grad_query = tl.zeros([OWN, WIDTH], tl.float32)
    if DROPOUT:
        own_bits = tl.load(hashes + head * tokens + token, mask=inside, other=0)
        own_bits = own_bits.to(tl.uint32, bitcast=True)
    for low in tl.range(0, end, STEP, num_stages=STAGES):
        j = low + tl.arange(0, STEP)
        present = j < length
        other = (start + j).to(tl.int64)[:, None] * (3 * part) + head * WIDTH + d[None, :]
        other_key = tl.load(qkv + part + other, mask=present[:, None], other=0.0)
        other_value = tl.load(qkv + 2 * part + other, mask=present[:, None], other=0.0)
        scores = tl.dot(own_query, tl.trans(other_key)) * log2_scale
        weights = tl.exp2(scores - own_normalizer[:, None])
        grad_weights = tl.dot(own_upstream, tl.trans(other_value))
        if DROPOUT:
            kept = is_pair_kept(own_bits[:, None], j[None, :], threshold)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        grad_scores = weights * (grad_weights - own_delta[:, None])
        grad_query = tl.dot(grad_scores.to(own_query.dtype), other_key, grad_query)
    grad_query = tl.where(inside[:, None], grad_query * scale, 0.0)
    tl.store(grad_qkv + at, grad_query.to(key.dtype), mask=inside[:, None])
    tl.store(sums, tl.sum(grad_query, 0))


class Attended(NamedTuple):
    """What the forward pass returns."""

    output: Tensor
    """[T, N, D]."""
    normalizers: Tensor
    """float32 [N, T]: log2 of each query's sum of exponentials."""


def attend_long_rows(
    qkv_T3ND: Tensor, starts: Tensor, longest: int, dropout_p: float, keys: Tensor
) -> Attended:
    """Attend within rows of any length.

    Args:
        qkv_T3ND: contiguous.
        starts: int32 [B + 1], where each row starts.
        longest: length of the longest row.
        dropout_p: probability to drop an attention weight.
        keys: of :func:`draw_keys`.
    """
    tokens, _, heads, width = qkv_T3ND.shape
    output = qkv_T3ND.new_empty(tokens, heads, width)
    normalizers = qkv_T3ND.new_empty(heads, tokens, dtype=torch.float32)
    drop = Drop.of(dropout_p)
    _attend(
        (heads, cdiv(longest, FORWARD.own), starts.numel() - 1),
        qkv_T3ND,
        starts,
        keys,
        output,
        normalizers,
        tokens,
        width**-0.5 * LOG2_E,
        drop.threshold,
        drop.scale,
        HEADS=heads,
        WIDTH=width,
        OWN=FORWARD.own,
        STEP=FORWARD.step,
        STAGES=FORWARD.stages,
        DROPOUT=dropout_p > 0.0,
    )
    return Attended(output, normalizers)


def attend_long_rows_backward(
    grad_output: Tensor,
    qkv_T3ND: Tensor,
    attended: Attended,
    starts: Tensor,
    longest: int,
    dropout_p: float,
    keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``qkv_T3ND`` and float32 [P, 3 N D], which add up to its sum over T.

    Args:
        grad_output: of the output, contiguous.
        qkv_T3ND: as for :func:`attend_long_rows`, like the others.
        attended: what it returned.
        starts: likewise.
        longest: likewise.
        dropout_p: likewise.
        keys: likewise.
    """
    tokens, _, heads, width = qkv_T3ND.shape
    rows, row_blocks, drop = starts.numel() - 1, cdiv(longest, BACKWARD.own), Drop.of(dropout_p)
    deltas = torch.empty_like(attended.normalizers)
    hashes = torch.empty_like(deltas, dtype=torch.int32)
    _prepare(
        (heads, cdiv(tokens, PREPARED_TOKENS), 1),
        grad_output,
        attended.output,
        keys,
        deltas,
        hashes,
        tokens,
        HEADS=heads,
        WIDTH=width,
        TOKENS=PREPARED_TOKENS,
        DROPOUT=dropout_p > 0.0,
    )
    grad_qkv = torch.empty_like(qkv_T3ND)
    column_sums = qkv_T3ND.new_empty(rows * row_blocks, 3 * heads * width, dtype=torch.float32)
    _attend_backward(
        (heads, row_blocks, rows),
        qkv_T3ND,
        starts,
        grad_output,
        attended.normalizers,
        deltas,
        hashes,
        grad_qkv,
        column_sums,
        tokens,
        width**-0.5,
        width**-0.5 * LOG2_E,
        drop.threshold,
        drop.scale,
        HEADS=heads,
        WIDTH=width,
        OWN=BACKWARD.own,
        STEP=BACKWARD.step,
        STAGES=BACKWARD.stages,
        DROPOUT=dropout_p > 0.0,
    )
    return grad_qkv, column_sums
