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

from bertds.model.kernels.add_norm import POSITIONS, Drop, keep_factor, mix_bits
from bertds.model.kernels.launch import kernel, next_power_of_2

LONGEST_ROW = 128
"""Longest row whose attention is computed here: all scores of a row and head fit into registers."""
HEAD_WIDTHS = (16, 32, 64)
"""Widths of a head whose row fits into shared memory."""
ATTEND_WARPS = 8
ATTEND_REGISTERS = 128
"""Of a thread, so that two programs run at a time on each multiprocessor."""
ATTEND_BACKWARD_WARPS = 8
STAGED_HEADS = 4
"""Heads per program of the backward pass of attention, where the next one is loaded ahead."""
SHARED_BYTES = 164_372
"""Shared memory that it then needs on an H100, for the widest head and the longest row."""


LOG2_E = tl.constexpr(1.4426950408889634)
FIRST_KEY = tl.constexpr(POSITIONS)


@triton.jit
def query_bits(position, keys):
    """Return a random uint32 for each position of a query in its block."""
    return tl.load(keys + 4 + position).to(tl.uint32, bitcast=True)


@triton.jit
def key_bits(position, keys):
    """Return a random uint32 for each position of a key in its block."""
    return query_bits(FIRST_KEY + position, keys)


@triton.jit
def pair_factor(rows, columns, block, keys, THRESHOLD: tl.constexpr):
    """Return ``keep_factor`` of a block of attention weights.

    A weight's hash is the product of three random numbers: of its query's position, of its key's,
    and an odd one of the block. This takes one instruction per weight. By their number, the
    kernels' instructions between the matrix products take longer than these. Among 197 million
    weights, the correlations of pairs, triples and squares of neighbours, within a block and
    between two, were those of independent draws: at most two standard errors, which are 7e-5 to
    1.4e-4.

    Args:
        rows: of :func:`query_bits`, or of ``key_bits`` where scores are transposed.
        columns: of the other one.
        block: a number that no other block has.
        keys: of ``draw_keys``.
        THRESHOLD: of ``Drop``.
    """
    rows *= mix_bits(block, tl.load(keys), tl.load(keys + 1)) | 1
    return keep_factor(rows[:, None] * columns[None, :], THRESHOLD)


@kernel(ATTEND_WARPS, registers=ATTEND_REGISTERS)
def _attend(
    qkv,
    starts,
    keys,
    output,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    """One program per row and head. Exponentials are powers of 2."""
    head, row = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    i = tl.arange(0, ROW)
    d = tl.arange(0, WIDTH)
    inside = i < length
    PART: tl.constexpr = HEADS * WIDTH
    SCALE: tl.constexpr = WIDTH**-0.5 * LOG2_E
    first = start.to(tl.int64)
    from_qkv = qkv + first * (3 * PART) + head * WIDTH + i[:, None] * (3 * PART) + d[None, :]
    query = tl.load(from_qkv, mask=inside[:, None], other=0.0)
    key = tl.load(from_qkv + PART, mask=inside[:, None], other=0.0)
    value = tl.load(from_qkv + 2 * PART, mask=inside[:, None], other=0.0)
    scores = tl.dot(query, tl.trans(key))
    scores = tl.where(inside[None, :], scores, -1e38)  # finite: an empty row makes no NaN
    weights = tl.exp2(scores * SCALE - (tl.max(scores, 1) * SCALE)[:, None])
    total = tl.sum(weights, 1)
    if KEEP_SCALE != 1.0:
        block = row * HEADS + head
        weights *= pair_factor(query_bits(i, keys), key_bits(i, keys), block, keys, THRESHOLD)
    gathered = tl.dot(weights.to(query.dtype), value) * (KEEP_SCALE / total)[:, None]
    to = output + first * PART + head * WIDTH + i[:, None] * PART + d[None, :]
    tl.store(to, gathered.to(query.dtype), mask=inside[:, None])


@kernel(ATTEND_BACKWARD_WARPS)
def _attend_backward(
    qkv,
    starts,
    keys,
    grad_output,
    grad_qkv,
    column_sums,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    STAGES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
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
    PART: tl.constexpr = HEADS * WIDTH
    SCALE: tl.constexpr = WIDTH**-0.5 * LOG2_E
    GRAD_SCALE: tl.constexpr = WIDTH**-0.5 * KEEP_SCALE
    first = start.to(tl.int64)
    at = first * (3 * PART) + i[:, None] * (3 * PART) + d[None, :]
    from_qkv, to_qkv = qkv + at, grad_qkv + at
    from_output = grad_output + first * PART + i[:, None] * PART + d[None, :]
    if KEEP_SCALE != 1.0:
        queries = query_bits(i, keys)
    first_head = tl.program_id(0) * PER_PROGRAM
    for head in tl.range(first_head, first_head + PER_PROGRAM, num_stages=STAGES):
        low = head * WIDTH
        query = tl.load(from_qkv + low, mask=inside[:, None], other=0.0)
        key = tl.load(from_qkv + (low + PART), mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key))
        scores = tl.where(inside[None, :], scores, -1e38)
        value = tl.load(from_qkv + (low + 2 * PART), mask=inside[:, None], other=0.0)
        upstream = tl.load(from_output + low, mask=inside[:, None], other=0.0)
        grad_weights = tl.dot(upstream, tl.trans(value))
        weights = tl.exp2(scores * SCALE - (tl.max(scores, 1) * SCALE)[:, None])
        weights *= (1.0 / tl.sum(weights, 1))[:, None]
        dropped = weights
        if KEEP_SCALE != 1.0:
            block = row * HEADS + head
            factor = pair_factor(queries, key_bits(i, keys), block, keys, THRESHOLD)
            dropped = weights * factor
        rounded = dropped.to(query.dtype)
        weighted = dropped * grad_weights
        grad_scores = (weighted - weights * tl.sum(weighted, 1)[:, None]).to(query.dtype)
        # The scale of what is kept is applied to the results, which have fewer elements.
        grad_value = tl.dot(tl.trans(rounded), upstream) * KEEP_SCALE
        tl.store(to_qkv + (low + 2 * PART), grad_value.to(query.dtype), mask=inside[:, None])
        sums = column_sums + row * (3 * PART) + low + d
        tl.store(sums + 2 * PART, tl.sum(grad_value, 0))
        grad_key = tl.dot(tl.trans(grad_scores), query) * GRAD_SCALE
        tl.store(to_qkv + (low + PART), grad_key.to(query.dtype), mask=inside[:, None])
        tl.store(sums + PART, tl.sum(grad_key, 0))
        grad_query = tl.dot(grad_scores, key) * GRAD_SCALE
        tl.store(to_qkv + low, grad_query.to(query.dtype), mask=inside[:, None])
        tl.store(sums, tl.sum(grad_query, 0))


@functools.cache
def is_large_enough(device: torch.device) -> bool:
    """Return whether a multiprocessor has ``SHARED_BYTES``: A100, H100, but no workstation GPU."""
    if device.type != "cuda":
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return bool(properties["max_shared_mem"] >= SHARED_BYTES)


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
        HEADS=heads,
        WIDTH=width,
        ROW=_row_block(longest),
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
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
    per_program = STAGED_HEADS if heads % STAGED_HEADS == 0 else 1
    _attend_backward(
        (heads // per_program, rows, 1),
        qkv_T3ND,
        starts,
        keys,
        grad_output,
        grad_qkv,
        column_sums,
        HEADS=heads,
        WIDTH=width,
        ROW=_row_block(longest),
        PER_PROGRAM=per_program,
        STAGES=1 if per_program == 1 else 2,
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
    )
    return grad_qkv, column_sums
