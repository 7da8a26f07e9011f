"""Triton kernels of a BERT layer that also add up the columns of what they write.

GELU's gradient, the three gradients of attention as one, and the end of all column sums of a layer,
which are the gradients of its biases and of LayerNorm's parameters. See ``add_norm``.

Sizes: T tokens, I intermediate width, N heads, D width of a head, P programs.
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.launch import cdiv, kernel, next_power_of_2

TILE_ROWS, TILE_COLUMNS = 8, 256
TILE_WARPS = 4
TILE_PROGRAMS = 264
"""Programs along the tokens of the kernels that work on tiles."""
SUM_ROWS, SUM_COLUMNS = 32, 32
"""Tile of the kernel that ends the sums: 13,312 columns of BERT-large make 416 programs."""
SUM_WARPS = 4
SUMMED = 4
"""Partial sums of a layer: each LayerNorm's, GELU's, attention's."""
VARYING = ["tokens", "tokens_per_program"]
VARYING_ROWS = ["rows0", "rows1", "rows2", "rows3"]


@kernel(TILE_WARPS, VARYING)
def _gelu_backward(
    grad,
    values,
    column_sums,
    tokens,
    tokens_per_program,
    width,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """In place: ``grad`` becomes the gradient of ``values``."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * tokens_per_program
    last = tl.minimum(first + tokens_per_program, tokens)
    # Added up over the rows only at the end: each sum makes the warps wait for each other.
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for low in range(first, last, ROWS):
        row = low + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if TANH:
            # 0.5 (1 + tanh(z)) = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3).
            square = x * x
            z = 0.7978845608028654 * x * (1.0 + 0.044715 * square)
            gate = 1.0 / (1.0 + tl.exp(-2.0 * z))
            slope = 0.7978845608028654 * (1.0 + 0.134145 * square)
            derivative = gate + 2.0 * x * gate * (1.0 - gate) * slope
        else:
            derivative = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
            derivative += x * tl.exp(-0.5 * x * x) * 0.3989422804014327
        dx = dy * derivative
        tl.store(grad + at, dx.to(grad.dtype.element_ty), mask=inside)
        total += dx
    tl.store(column_sums + tl.program_id(1) * width + column, tl.sum(total, 0), mask=column < width)


@kernel(TILE_WARPS, VARYING)
def _join_gradients(
    first_part,
    second_part,
    third_part,
    joined,
    column_sums,
    tokens,
    tokens_per_program,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Lay three [T, width] next to each other; program axis 2 chooses one of them."""
    part = tl.program_id(2)
    source = first_part
    if part == 1:
        source = second_part
    if part == 2:
        source = third_part
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * tokens_per_program
    last = tl.minimum(first + tokens_per_program, tokens)
    # Added up over the rows only at the end: each sum makes the warps wait for each other.
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for low in range(first, last, ROWS):
        row = low + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (column < width)[None, :]
        row = row.to(tl.int64)[:, None]
        values = tl.load(source + row * width + column[None, :], mask=inside, other=0.0)
        tl.store(joined + (3 * row + part) * width + column[None, :], values, mask=inside)
        total += values.to(tl.float32)
    sums = column_sums + (3 * tl.program_id(1) + part) * width + column
    tl.store(sums, tl.sum(total, 0), mask=column < width)


class _Tiles(NamedTuple):
    columns: int
    across: int
    """Programs along the columns."""
    along: int
    """Programs along the tokens."""
    tokens_per_program: int

    @classmethod
    @functools.lru_cache(maxsize=64)  # the layers of a pass ask for the same
    def over(cls, tokens: int, width: int) -> _Tiles:
        columns = min(TILE_COLUMNS, next_power_of_2(width))
        tiles = max(1, cdiv(tokens, TILE_ROWS))
        tiles_per_program = cdiv(tiles, min(TILE_PROGRAMS, tiles))
        along = cdiv(tiles, tiles_per_program)
        return cls(columns, cdiv(width, columns), along, tiles_per_program * TILE_ROWS)


def gelu_backward(grad_TI: Tensor, values_TI: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """Return the gradient of GELU's input and its sums over tokens, float32 [P, I].

    Args:
        grad_TI: of GELU's output, contiguous; its memory is taken for the result.
        values_TI: GELU's input, contiguous.
        approximate: "none" (erf) or "tanh", as for ``torch.nn.functional.gelu``.
    """
    tokens, width = values_TI.shape
    tiles = _Tiles.over(tokens, width)
    column_sums = values_TI.new_empty(tiles.along, width, dtype=torch.float32)
    _gelu_backward(
        (tiles.across, tiles.along, 1),
        grad_TI,
        values_TI,
        column_sums,
        tokens,
        tiles.tokens_per_program,
        width,
        TANH=approximate == "tanh",
        ROWS=TILE_ROWS,
        COLUMNS=tiles.columns,
    )
    return grad_TI, column_sums


def join_gradients(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Lay the gradients of queries, keys and values next to each other.

    Args:
        parts: each [T, N, D], contiguous.

    Returns:
        [T, 3, N, D] and its sums over tokens, float32 [P, 3 N D].
    """
    tokens, heads, head_width = parts[0].shape
    width = heads * head_width
    tiles = _Tiles.over(tokens, width)
    joined = parts[0].new_empty(tokens, 3, heads, head_width)
    column_sums = parts[0].new_empty(tiles.along, 3 * width, dtype=torch.float32)
    _join_gradients(
        (tiles.across, tiles.along, 3),
        *parts,
        joined,
        column_sums,
        tokens,
        tiles.tokens_per_program,
        width,
        ROWS=TILE_ROWS,
        COLUMNS=tiles.columns,
    )
    return joined, column_sums


@kernel(SUM_WARPS, VARYING_ROWS)
def _finish_sums(
    part0,
    part1,
    part2,
    part3,
    output,
    rows0,
    rows1,
    rows2,
    rows3,
    width0,
    width1,
    width2,
    width3,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add up the rows of four matrices; program axis 1 chooses one of them."""
    part = tl.program_id(1)
    source, rows, width, start = part0, rows0, width0, 0
    if part == 1:
        source, rows, width, start = part1, rows1, width1, width0
    if part == 2:
        source, rows, width, start = part2, rows2, width2, width0 + width1
    if part == 3:
        source, rows, width, start = part3, rows3, width3, width0 + width1 + width2
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for low in range(0, rows, ROWS):
        row = low + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(source + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    sums = tl.sum(total, 0).to(output.dtype.element_ty)
    tl.store(output + start + column, sums, mask=column < width)


def finish_sums(partial: tuple[Tensor, Tensor, Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the column sums of four float32 matrices [P, width], one after the other."""
    rows, widths = zip(*(part.shape for part in partial), strict=True)
    output = partial[0].new_empty(sum(widths), dtype=dtype)
    _finish_sums(
        (cdiv(max(widths), SUM_COLUMNS), SUMMED, 1),
        *partial,
        output,
        *rows,
        *widths,
        ROWS=SUM_ROWS,
        COLUMNS=SUM_COLUMNS,
    )
    return output
