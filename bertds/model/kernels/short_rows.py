"""Attention within short rows, as Triton kernels: a row and a head at a time.

All scores of a row and head fit into the registers of a multiprocessor, so the softmax is computed
at once, and again in the backward pass. Nothing of it is kept. The backward kernel writes the
gradients of queries, keys and values next to each other, where the next matrix product reads them.
It also writes their sums over the row's tokens, which are the gradients of the biases. See
``add_norm`` for dropout and for how the kernels run on a CPU.

Sizes: T tokens, N heads, D width of a head, B rows.
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.add_norm import Drop, mix_bits
from bertds.model.kernels.launch import kernel, next_power_of_2

LONGEST_ROW = 128
"""Longest row whose attention is computed here: all scores of a row and head fit into registers."""
HEAD_WIDTHS = (16, 32, 64)
"""Widths of a head whose row fits into the shared memory of every GPU from Ampere on."""
ATTEND_WARPS = 8
ATTEND_BACKWARD_WARPS = 8
STAGED_HEADS = 4
"""Heads per program of the backward pass of attention, where the next one is loaded ahead."""
TWO_HEADS_BYTES = 163_860
"""Shared memory that it then needs."""


@triton.jit
def query_bits(token, head, HEADS: tl.constexpr, keys):
    """Return a hash of each query of a head."""
    return mix_bits(token * HEADS + head, tl.load(keys), tl.load(keys + 1))


@triton.jit
def is_pair_kept(bits, position, threshold):
    """Return whether dropout keeps the weight of a query and a key.

    The query's hash is mixed well already, so this takes two thirds of the integer operations of a
    hash of the weight's place. Those take as long as the matrix products of attention. With these
    constants, no two keys up to 128 apart are correlated by more than 2.3e-4 (two standard errors
    of a sample of 61 million).

    Args:
        bits: of :func:`query_bits`.
        position: the key's, in its row.
        threshold: of ``Drop``.
    """
    x = bits ^ position.to(tl.uint32)
    x *= 0x846CA68B
    x ^= x >> 16
    x *= 0x9E3779B1
    return (x >> 8).to(tl.int32) >= threshold


@kernel(ATTEND_WARPS)
def _attend(
    qkv,
    starts,
    keys,
    output,
    scale: tl.float32,
    threshold: tl.int32,
    keep_scale: tl.float32,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One program per row and head; ``scale`` includes log2(e)."""
    head, row = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    i = tl.arange(0, ROW)
    d = tl.arange(0, WIDTH)
    inside = i < length
    token = (start + i).to(tl.int64)
    at = token[:, None] * (3 * HEADS * WIDTH) + head * WIDTH + d[None, :]
    query = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    key = tl.load(qkv + at + HEADS * WIDTH, mask=inside[:, None], other=0.0)
    value = tl.load(qkv + at + 2 * HEADS * WIDTH, mask=inside[:, None], other=0.0)
    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(inside[None, :], scores, -1e38)  # finite: an empty row makes no NaN
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    if DROPOUT:
        bits = query_bits(token, head, HEADS, keys)
        kept = is_pair_kept(bits[:, None], i[None, :], threshold)
        weights = tl.where(kept, weights, 0.0)
    gathered = tl.dot(weights.to(query.dtype), value) * (keep_scale / total)[:, None]
    to = token[:, None] * (HEADS * WIDTH) + head * WIDTH + d[None, :]
    tl.store(output + to, gathered.to(query.dtype), mask=inside[:, None])


@kernel(ATTEND_BACKWARD_WARPS)
def _attend_backward(
    qkv,
    starts,
    keys,
    grad_output,
    grad_qkv,
    column_sums,
    scale: tl.float32,
    log2_scale: tl.float32,
    threshold: tl.int32,
    keep_scale: tl.float32,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    STAGES: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One program per row and ``PER_PROGRAM`` heads; computes the whole softmax again.

    A head's scores and their gradient fill the registers, so that one program runs at a time on
    each multiprocessor. With two stages it loads the next head's inputs while it computes.
    """
    row = tl.program_id(1)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    i = tl.arange(0, ROW)
    d = tl.arange(0, WIDTH)
    inside = i < length
    token = (start + i).to(tl.int64)
    first = tl.program_id(0) * PER_PROGRAM
    for head in tl.range(first, first + PER_PROGRAM, num_stages=STAGES):
        at = token[:, None] * (3 * HEADS * WIDTH) + head * WIDTH + d[None, :]
        to = token[:, None] * (HEADS * WIDTH) + head * WIDTH + d[None, :]
        query = tl.load(qkv + at, mask=inside[:, None], other=0.0)
        key = tl.load(qkv + at + HEADS * WIDTH, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key)) * log2_scale
        scores = tl.where(inside[None, :], scores, -1e38)
        value = tl.load(qkv + at + 2 * HEADS * WIDTH, mask=inside[:, None], other=0.0)
        upstream = tl.load(grad_output + to, mask=inside[:, None], other=0.0)
        grad_weights = tl.dot(upstream, tl.trans(value))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights *= (1.0 / tl.sum(weights, 1))[:, None]
        dropped = weights
        if DROPOUT:
            bits = query_bits(token, head, HEADS, keys)
            kept = is_pair_kept(bits[:, None], i[None, :], threshold)
            dropped = tl.where(kept, weights * keep_scale, 0.0)
            grad_weights = tl.where(kept, grad_weights * keep_scale, 0.0)
        sums = column_sums + row * (3 * HEADS * WIDTH) + head * WIDTH + d
        grad_value = tl.dot(tl.trans(dropped.to(query.dtype)), upstream)
        tl.store(
            grad_qkv + at + 2 * HEADS * WIDTH, grad_value.to(query.dtype), mask=inside[:, None]
        )
        tl.store(sums + 2 * HEADS * WIDTH, tl.sum(grad_value, 0))
        weighted = weights * grad_weights
        grad_scores = (weighted - weights * tl.sum(weighted, 1)[:, None]).to(query.dtype)
        grad_key = tl.dot(tl.trans(grad_scores), query) * scale
        tl.store(grad_qkv + at + HEADS * WIDTH, grad_key.to(query.dtype), mask=inside[:, None])
        tl.store(sums + HEADS * WIDTH, tl.sum(grad_key, 0))
        grad_query = tl.dot(grad_scores, key) * scale
        tl.store(grad_qkv + at, grad_query.to(query.dtype), mask=inside[:, None])
        tl.store(sums, tl.sum(grad_query, 0))


LOG2_E = 1.4426950408889634


@functools.cache
def _holds_two(device: torch.device) -> bool:
    """Return whether a multiprocessor's shared memory holds the inputs of two heads: A100, H100."""
    if device.type != "cuda":
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return bool(properties["max_shared_mem"] >= TWO_HEADS_BYTES)


def _row_block(longest: int) -> int:
    return max(16, next_power_of_2(longest))


def attend_short_rows(
    qkv_T3ND: Tensor, starts: Tensor, longest: int, dropout_p: float, keys: Tensor
) -> Tensor:
    """Attend within rows of at most ``LONGEST_ROW`` tokens.

    Args:
        qkv_T3ND: contiguous.
        starts: int32 [B + 1], where each row starts.
        longest: length of the longest row.
        dropout_p: probability to drop an attention weight.
        keys: of :func:`draw_keys`.

    Returns:
        [T, N, D].
    """
    tokens, _, heads, width = qkv_T3ND.shape
    output = qkv_T3ND.new_empty(tokens, heads, width)
    drop = Drop.of(dropout_p)
    _attend(
        (heads, starts.numel() - 1, 1),
        qkv_T3ND,
        starts,
        keys,
        output,
        width**-0.5 * LOG2_E,
        drop.threshold,
        drop.scale,
        HEADS=heads,
        WIDTH=width,
        ROW=_row_block(longest),
        DROPOUT=dropout_p > 0.0,
    )
    return output


def attend_short_rows_backward(
    grad_output: Tensor,
    qkv_T3ND: Tensor,
    starts: Tensor,
    longest: int,
    dropout_p: float,
    keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``qkv_T3ND`` and its sums over each row's tokens, float32 [B, 3 N D].

    Args:
        grad_output: of the output, contiguous.
        qkv_T3ND: as for :func:`attend_short_rows`, like the others.
        starts: likewise.
        longest: likewise.
        dropout_p: likewise.
        keys: likewise.
    """
    _, _, heads, width = qkv_T3ND.shape
    rows, drop = starts.numel() - 1, Drop.of(dropout_p)
    grad_qkv = torch.empty_like(qkv_T3ND)
    column_sums = qkv_T3ND.new_empty(rows, 3 * heads * width, dtype=torch.float32)
    per_program = STAGED_HEADS if heads % STAGED_HEADS == 0 and _holds_two(qkv_T3ND.device) else 1
    _attend_backward(
        (heads // per_program, rows, 1),
        qkv_T3ND,
        starts,
        keys,
        grad_output,
        grad_qkv,
        column_sums,
        width**-0.5,
        width**-0.5 * LOG2_E,
        drop.threshold,
        drop.scale,
        HEADS=heads,
        WIDTH=width,
        ROW=_row_block(longest),
        PER_PROGRAM=per_program,
        STAGES=1 if per_program == 1 else 2,
        DROPOUT=dropout_p > 0.0,
    )
    return grad_qkv, column_sums
