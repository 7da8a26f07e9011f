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
import triton
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.add_norm import Drop
from bertds.model.kernels.launch import cdiv, kernel
from bertds.model.kernels.short_rows import (
    LOG2_E,
    key_bits,
    pair_factor,
    query_bits,
)

BLOCK = 64
"""Tokens of a row that a program owns, and that its loops take at a time."""
WARPS = 4
FORWARD_STAGES = 3
BACKWARD_STAGES = 2
"""Loop turns whose inputs are in shared memory at a time.

The fastest of four and of three on an H100, with an earlier form of the kernels. Programs that own
128 tokens took 1.03 and 1.18 times as long.
"""


@triton.jit
def block_number(row, head, queries, others, HEADS: tl.constexpr):
    """Return a number that no other block of weights has, given those of queries and of keys."""
    blocks = tl.num_programs(1)
    return ((row * HEADS + head) * blocks + queries) * blocks + others


@triton.jit
def first_normalizer(row, head, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Return where the normalizers of a row and a head start, in [B, N, whole blocks]."""
    return (row * HEADS + head) * (tl.num_programs(1) * BLOCK)


@kernel(WARPS)
def _attend(
    qkv,
    starts,
    keys,
    output,
    normalizers,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    """Exponentials are powers of 2, and the normalizers binary logarithms.

    Those of tokens past the row's end are infinity: there, no query gives a weight to any key.
    """
    head, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    j = tl.arange(0, BLOCK)
    i = block * BLOCK + j
    d = tl.arange(0, WIDTH)
    inside = i < length
    PART: tl.constexpr = HEADS * WIDTH
    SCALE: tl.constexpr = WIDTH**-0.5 * LOG2_E
    first = start.to(tl.int64)
    from_qkv = qkv + first * (3 * PART) + head * WIDTH
    query = tl.load(
        from_qkv + i[:, None] * (3 * PART) + d[None, :], mask=inside[:, None], other=0.0
    )
    from_key = from_qkv + PART + j[:, None] * (3 * PART) + d[None, :]
    largest = tl.full([BLOCK], -1e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    gathered = tl.zeros([BLOCK, WIDTH], tl.float32)
    if KEEP_SCALE != 1.0:
        queries, others = query_bits(j, keys), key_bits(j, keys)
    # A block past the row's end has nothing to do.
    end = tl.where(block * BLOCK < length, length, 0)
    for low in tl.range(0, end, BLOCK, num_stages=STAGES):
        present = j < length - low
        key = tl.load(from_key + low * (3 * PART), mask=present[:, None], other=0.0)
        value = tl.load(from_key + (low * (3 * PART) + PART), mask=present[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key))
        scores = tl.where(present[None, :], scores, -1e38)
        new = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores * SCALE - (new * SCALE)[:, None])
        shrink = tl.exp2((largest - new) * SCALE)
        total = total * shrink + tl.sum(weights, 1)
        if KEEP_SCALE != 1.0:
            number = block_number(row, head, block, low // BLOCK, HEADS)
            weights *= pair_factor(queries, others, number, keys, THRESHOLD)
        gathered = tl.dot(weights.to(query.dtype), value, gathered * shrink[:, None])
        largest = new
    total = tl.maximum(total, 1e-38)  # nothing was added up in a block past the row's end
    gathered *= (KEEP_SCALE / total)[:, None]
    to = output + first * PART + head * WIDTH + i[:, None] * PART + d[None, :]
    tl.store(to, gathered.to(query.dtype), mask=inside[:, None])
    normalizer = tl.where(inside, largest * SCALE + tl.log2(total), 1e38)
    tl.store(normalizers + first_normalizer(row, head, HEADS, BLOCK) + i, normalizer)


@kernel(WARPS)
def _prepare(
    grad_output,
    output,
    starts,
    deltas,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    """Each query's product of the output and its gradient (D of the paper).

    It is divided by the scale of what dropout keeps, and 0 for tokens past the row's end.
    """
    head, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < length
    at = (start + i).to(tl.int64)[:, None] * (HEADS * WIDTH) + head * WIDTH
    at += tl.arange(0, WIDTH)[None, :]
    x = tl.load(output + at, mask=inside[:, None], other=0.0).to(tl.float32)
    dy = tl.load(grad_output + at, mask=inside[:, None], other=0.0).to(tl.float32)
    delta = tl.sum(x * dy, 1)
    if KEEP_SCALE > 0.0:  # 0 where everything is dropped, and so is the product
        delta *= 1.0 / KEEP_SCALE
    tl.store(deltas + first_normalizer(row, head, HEADS, BLOCK) + i, delta)


@kernel(WARPS)
def _attend_backward(
    qkv,
    starts,
    keys,
    grad_output,
    normalizers,
    deltas,
    grad_qkv,
    column_sums,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    """Queries past the row's end have a normalizer of infinity, and so no weights.

    The scale of what dropout keeps is applied to the results. Until then, gradients of weights and
    scores lack it.
    """
    head, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    other = tl.arange(0, BLOCK)
    own = block * BLOCK + other
    d = tl.arange(0, WIDTH)
    inside = own < length
    PART: tl.constexpr = HEADS * WIDTH
    SCALE: tl.constexpr = WIDTH**-0.5 * LOG2_E
    GRAD_SCALE: tl.constexpr = WIDTH**-0.5 * KEEP_SCALE
    first = start.to(tl.int64)
    from_qkv = qkv + first * (3 * PART) + head * WIDTH
    from_output = grad_output + first * PART + head * WIDTH
    normalizers += first_normalizer(row, head, HEADS, BLOCK)
    deltas += first_normalizer(row, head, HEADS, BLOCK)
    own_qkv = own[:, None] * (3 * PART) + d[None, :]
    other_qkv = from_qkv + other[:, None] * (3 * PART) + d[None, :]
    other_output = from_output + other[:, None] * PART + d[None, :]
    to_qkv = grad_qkv + first * (3 * PART) + head * WIDTH + own_qkv
    sums = column_sums + (row * tl.num_programs(1) + block) * (3 * PART) + head * WIDTH + d
    end = tl.where(block * BLOCK < length, length, 0)

    # Gradients of this block's keys and values. Scores are transposed: keys by queries.
    key = tl.load(from_qkv + PART + own_qkv, mask=inside[:, None], other=0.0)
    value = tl.load(from_qkv + 2 * PART + own_qkv, mask=inside[:, None], other=0.0)
    grad_key = tl.zeros([BLOCK, WIDTH], tl.float32)
    grad_value = tl.zeros([BLOCK, WIDTH], tl.float32)
    if KEEP_SCALE != 1.0:
        own_table, table = key_bits(other, keys), query_bits(other, keys)
    for low in tl.range(0, end, BLOCK, num_stages=STAGES):
        present = other < length - low
        query = tl.load(other_qkv + low * (3 * PART), mask=present[:, None], other=0.0)
        upstream = tl.load(other_output + low * PART, mask=present[:, None], other=0.0)
        normalizer = tl.load(normalizers + low + other)
        delta = tl.load(deltas + low + other)
        weights = tl.exp2(tl.dot(key, tl.trans(query)) * SCALE - normalizer[None, :])
        grad_weights = tl.dot(value, tl.trans(upstream))
        dropped = weights
        if KEEP_SCALE != 1.0:
            number = block_number(row, head, low // BLOCK, block, HEADS)
            dropped *= pair_factor(own_table, table, number, keys, THRESHOLD)
        grad_value = tl.dot(dropped.to(query.dtype), upstream, grad_value)
        grad_scores = dropped * grad_weights - weights * delta[None, :]
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key)
    # Keys past the row's end may have infinite gradients, which are not stored.
    grad_value = tl.where(inside[:, None], grad_value * KEEP_SCALE, 0.0)
    grad_key = tl.where(inside[:, None], grad_key * GRAD_SCALE, 0.0)
    tl.store(to_qkv + 2 * PART, grad_value.to(key.dtype), mask=inside[:, None])
    tl.store(to_qkv + PART, grad_key.to(key.dtype), mask=inside[:, None])
    tl.store(sums + 2 * PART, tl.sum(grad_value, 0))
    tl.store(sums + PART, tl.sum(grad_key, 0))

    # Gradients of this block's queries.
    own_query = tl.load(from_qkv + own_qkv, mask=inside[:, None], other=0.0)
    own_output = own[:, None] * PART + d[None, :]
    own_upstream = tl.load(from_output + own_output, mask=inside[:, None], other=0.0)
    own_normalizer = tl.load(normalizers + own)
    own_delta = tl.load(deltas + own)
    grad_query = tl.zeros([BLOCK, WIDTH], tl.float32)
    if KEEP_SCALE != 1.0:
        own_table, table = query_bits(other, keys), key_bits(other, keys)
    for low in tl.range(0, end, BLOCK, num_stages=STAGES):
        present = other < length - low
        from_key = other_qkv + (low * (3 * PART) + PART)
        other_key = tl.load(from_key, mask=present[:, None], other=0.0)
        other_value = tl.load(from_key + PART, mask=present[:, None], other=0.0)
        scores = tl.dot(own_query, tl.trans(other_key)) * SCALE - own_normalizer[:, None]
        # Keys past the row's end: 0 is a high score where the real ones are negative.
        weights = tl.exp2(tl.where(present[None, :], scores, -1e38))
        grad_weights = tl.dot(own_upstream, tl.trans(other_value))
        dropped = weights
        if KEEP_SCALE != 1.0:
            number = block_number(row, head, block, low // BLOCK, HEADS)
            dropped *= pair_factor(own_table, table, number, keys, THRESHOLD)
        grad_scores = dropped * grad_weights - weights * own_delta[:, None]
        grad_query = tl.dot(grad_scores.to(own_query.dtype), other_key, grad_query)
    grad_query = tl.where(inside[:, None], grad_query * GRAD_SCALE, 0.0)
    tl.store(to_qkv, grad_query.to(key.dtype), mask=inside[:, None])
    tl.store(sums, tl.sum(grad_query, 0))


class Attended(NamedTuple):
    """What the forward pass returns."""

    output: Tensor
    """[T, N, D]."""
    normalizers: Tensor
    """float32 [B, N, tokens of the longest row, rounded up to ``BLOCK``]: log2 of each query's sum
    of exponentials."""


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
    rows, row_blocks, drop = starts.numel() - 1, cdiv(longest, BLOCK), Drop.of(dropout_p)
    output = qkv_T3ND.new_empty(tokens, heads, width)
    normalizers = qkv_T3ND.new_empty(rows, heads, row_blocks * BLOCK, dtype=torch.float32)
    _attend(
        (heads, row_blocks, rows),
        qkv_T3ND,
        starts,
        keys,
        output,
        normalizers,
        HEADS=heads,
        WIDTH=width,
        BLOCK=BLOCK,
        STAGES=FORWARD_STAGES,
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
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
    _, _, heads, width = qkv_T3ND.shape
    rows, row_blocks, drop = starts.numel() - 1, cdiv(longest, BLOCK), Drop.of(dropout_p)
    deltas = torch.empty_like(attended.normalizers)
    _prepare(
        (heads, row_blocks, rows),
        grad_output,
        attended.output,
        starts,
        deltas,
        HEADS=heads,
        WIDTH=width,
        BLOCK=BLOCK,
        KEEP_SCALE=drop.scale,
    )
    grad_qkv = torch.empty_like(qkv_T3ND)
    column_sums = qkv_T3ND.new_empty(rows * row_blocks, 3 * heads * width, dtype=torch.float32)
    _attend_backward(
        (heads, row_blocks, rows),
        qkv_T3ND,
        starts,
        keys,
        grad_output,
        attended.normalizers,
        deltas,
        grad_qkv,
        column_sums,
        HEADS=heads,
        WIDTH=width,
        BLOCK=BLOCK,
        STAGES=BACKWARD_STAGES,
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
    )
    return grad_qkv, column_sums
