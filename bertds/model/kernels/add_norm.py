"""What a BERT layer computes between its matrix products, as Triton kernels.

Forward and backward of dropout, residual sum and LayerNorm. GELU's gradient and sums over tokens
are in ``column_sums``, attention within short rows in ``short_rows``. Each kernel reads
its inputs once and writes its results once. The backward kernels also add up the columns of what
they write, which are the gradients of biases and of LayerNorm's parameters, so that nothing is read
again for a sum. Sums are made in a fixed order, without atomic operations: the same input gives the
same bits.

Dropout keeps no mask. Whether an element is kept is a hash of its place and of two 32-bit keys,
which the backward kernel computes again. The hash is a multiply-xorshift finalizer with the
constants of C. Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/). The top 23 bits of it
are compared with p, so p is a multiple of 2**-23, and the factor 1 / (1 - p) uses that same p.

``TRITON_INTERPRET=1``, set before Triton is imported, runs the kernels on a CPU (for tests).

Sizes: T tokens, H width, P programs.
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.launch import cdiv, kernel, next_power_of_2

KEEP_BITS = 23
"""Bits of a float32's mantissa."""
POSITIONS = 128
"""Positions for which a dropout has random numbers: two each, for a query and for a key."""
NORM_ELEMENTS = 2048
"""Elements that a program of the LayerNorm kernels holds at a time."""
NORM_WARPS = 4
VARYING = ["tokens"]
NORM_PROGRAMS = 1056
"""Programs of LayerNorm's backward kernel: 8 on each multiprocessor of an H100."""


class Drop(NamedTuple):
    """Dropout as the kernels take it."""

    threshold: float
    """Of :func:`keep_factor`."""
    scale: float
    """Factor of what is kept; 1.0 = no dropout."""

    @classmethod
    @functools.cache
    def of(cls, probability: float) -> Drop:
        """Return the nearest probability that 23 bits can express."""
        dropped = min(round(probability * 2**KEEP_BITS), 2**KEEP_BITS)
        kept = 1.0 - dropped / 2**KEEP_BITS
        return cls(float(2**KEEP_BITS + dropped - 1), 1.0 / kept if kept else 0.0)


def draw_keys(sites: int, device: torch.device) -> tuple[Tensor, ...]:
    """Draw the random numbers of dropouts from the device's generator.

    Returns:
        For each site int32 [4 + 2 POSITIONS] on the device: two keys of a hash, two numbers that
        are not used, and the numbers of positions. Each begins at a multiple of 16 bytes, so that
        one compiled kernel serves all. Nothing waits for them.
    """
    shape = (sites, 4 + 2 * POSITIONS)
    drawn = torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, device=device)
    return drawn.unbind(0)


@triton.jit
def mix_bits(place, key0, key1):
    """Return a uint32 hash of places, with two int32 keys; its last bits are mixed least."""
    x = tl.cast(place, tl.uint32) ^ key0.to(tl.uint32, bitcast=True)
    x ^= x >> 16
    x *= 0x7FEB352D
    # A second key between the rounds: 2**64 different masks.
    x ^= key1.to(tl.uint32, bitcast=True)
    x ^= x >> 15
    x *= 0x846CA68B
    return x


@triton.jit
def keep_factor(bits, THRESHOLD: tl.constexpr):
    """Return 1.0 where dropout keeps an element, and 0.0 where it drops it.

    The top 23 bits of the hash become the mantissa of a float between 2**23 and 2**24, whose
    distance from the threshold is an integer. These are two instructions. A comparison is one, but
    there are only seven registers for its results: keeping them elsewhere took four instructions.
    """
    x = ((bits >> 9) | 0x4B000000).to(tl.float32, bitcast=True)
    return tl.clamp(x - THRESHOLD, 0.0, 1.0)


@triton.jit
def element_factor(place, keys, THRESHOLD: tl.constexpr):
    """Return :func:`keep_factor` of the elements at these places."""
    return keep_factor(mix_bits(place, tl.load(keys), tl.load(keys + 1)), THRESHOLD)


# -- dropout, residual sum, LayerNorm -----------------------------------------------------------


@kernel(NORM_WARPS, VARYING)
def _add_norm(
    dense,
    residual,
    gamma,
    beta,
    keys,
    summed,
    output,
    statistics,
    tokens,
    width,
    eps: tl.float32,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < tokens)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(dense + at, mask=inside, other=0.0).to(tl.float32)
    if KEEP_SCALE != 1.0:
        x *= element_factor(at, keys, THRESHOLD) * KEEP_SCALE
    x += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(summed.dtype.element_ty)
    tl.store(summed + at, rounded, mask=inside)
    x = rounded.to(tl.float32)  # what the backward pass will read
    mean = tl.sum(x, 1) / width
    x = tl.where(inside, x - mean[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(statistics + row, mean, mask=row < tokens)
    tl.store(statistics + tokens + row, factor, mask=row < tokens)
    weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=column < width, other=0.0).to(tl.float32)
    y = x * factor[:, None] * weight[None, :] + shift[None, :]
    tl.store(output + at, y.to(output.dtype.element_ty), mask=inside)


@kernel(NORM_WARPS, VARYING)
def _add_norm_backward(
    grad_output,
    summed,
    statistics,
    gamma,
    keys,
    grad_residual,
    grad_dense,
    column_sums,
    tokens,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEEP_SCALE: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    grad_gamma = tl.zeros([COLUMNS], tl.float32)
    grad_beta = tl.zeros([COLUMNS], tl.float32)
    grad_bias = tl.zeros([COLUMNS], tl.float32)
    for block in range(program, tl.cdiv(tokens, ROWS), programs):
        row = block * ROWS + tl.arange(0, ROWS)
        inside = (row < tokens)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        dy = tl.load(grad_output + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(summed + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(statistics + row, mask=row < tokens, other=0.0)
        factor = tl.load(statistics + tokens + row, mask=row < tokens, other=0.0)
        x = tl.where(inside, (x - mean[:, None]) * factor[:, None], 0.0)
        grad_gamma += tl.sum(dy * x, 0)
        grad_beta += tl.sum(dy, 0)
        dy *= weight[None, :]
        along = tl.sum(dy * x, 1) / width
        shift = tl.sum(dy, 1) / width
        dx = (dy - x * along[:, None] - shift[:, None]) * factor[:, None]
        tl.store(grad_residual + at, dx.to(grad_residual.dtype.element_ty), mask=inside)
        if KEEP_SCALE != 1.0:
            dx *= element_factor(at, keys, THRESHOLD) * KEEP_SCALE
            tl.store(grad_dense + at, dx.to(grad_dense.dtype.element_ty), mask=inside)
        grad_bias += tl.sum(dx, 0)  # 0 past the last token, whose factor is 0
    sums = column_sums + program * 3 * width + column
    tl.store(sums, grad_gamma, mask=column < width)
    tl.store(sums + width, grad_beta, mask=column < width)
    tl.store(sums + 2 * width, grad_bias, mask=column < width)


def _norm_rows(columns: int) -> int:
    return max(1, NORM_ELEMENTS // columns)


def add_norm(
    dense_TH: Tensor,
    residual_TH: Tensor,
    gamma_H: Tensor,
    beta_H: Tensor,
    eps: float,
    dropout_p: float,
    keys: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``LayerNorm(residual + dropout(dense))``.

    Args:
        dense_TH: contiguous; its memory is taken for the sum.
        residual_TH: contiguous.
        gamma_H: LayerNorm's weight.
        beta_H: LayerNorm's bias.
        eps: added to the variance.
        dropout_p: probability to drop an element of ``dense``.
        keys: of :func:`draw_keys`.

    Returns:
        The output [T, H], the sum [T, H], and float32 [2, T]: mean and 1 / deviation.
    """
    tokens, width = dense_TH.shape
    columns = next_power_of_2(width)
    rows, drop = _norm_rows(columns), Drop.of(dropout_p)
    output = torch.empty_like(dense_TH)
    statistics = dense_TH.new_empty(2, tokens, dtype=torch.float32)
    _add_norm(
        (cdiv(tokens, rows), 1, 1),
        dense_TH,
        residual_TH,
        gamma_H,
        beta_H,
        keys,
        dense_TH,
        output,
        statistics,
        tokens,
        width,
        eps,
        ROWS=rows,
        COLUMNS=columns,
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
    )
    return output, dense_TH, statistics


def add_norm_backward(
    grad_output: Tensor,
    summed_TH: Tensor,
    statistics: Tensor,
    gamma_H: Tensor,
    dropout_p: float,
    keys: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of :func:`add_norm`.

    Returns:
        Of the residual [T, H]; of ``dense`` [T, H] (the same tensor without dropout); and float32
        [P, 3 H], which add up to the gradients of gamma, beta and the bias of ``dense``.
    """
    tokens, width = summed_TH.shape
    columns = next_power_of_2(width)
    rows, drop = _norm_rows(columns), Drop.of(dropout_p)
    programs = max(1, min(NORM_PROGRAMS, cdiv(tokens, rows)))
    grad_residual = torch.empty_like(summed_TH)
    grad_dense = torch.empty_like(summed_TH) if drop.scale != 1.0 else grad_residual
    column_sums = summed_TH.new_empty(programs, 3 * width, dtype=torch.float32)
    _add_norm_backward(
        (programs, 1, 1),
        grad_output,
        summed_TH,
        statistics,
        gamma_H,
        keys,
        grad_residual,
        grad_dense,
        column_sums,
        tokens,
        width,
        ROWS=rows,
        COLUMNS=columns,
        THRESHOLD=drop.threshold,
        KEEP_SCALE=drop.scale,
    )
    return grad_residual, grad_dense, column_sums
