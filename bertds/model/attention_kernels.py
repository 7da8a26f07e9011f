"""Attention within each row of a flat row of real tokens.

Three kernels give the same result. One is chosen per forward pass, by :func:`choose_kernel`:

- ``flash``: torch's FlashAttention operator for ragged rows, with dropout. CUDA in bf16 and fp16.
  Queries, keys and values are strided views of one product: no copy, no padding. With
  FlashAttention 3 or 4 installed, the same operator runs their kernels, see
  :func:`activate_kernel`.
- ``grouped``: rows sorted by length, one batched product per length. Long rows with a window are
  divided into blocks of half a window; each attends to itself and its two neighbours. CPU.
- ``padded``: pad, masked scaled_dot_product_attention, unpad. Everywhere else, and the reference.

A window of ``reach`` lets a token attend to itself and to ``reach`` tokens on each side, as the
local layers of the modern encoder do: transformers' ``local_attention`` is twice that.

Measured on one H100, BERT-large, one layer forward and backward with dropout 0.1 (padded -> flash):
26,845 tokens in rows of at most 128: 2.50 -> 0.87 ms; 13,797 tokens in rows of at most 512: 3.27 ->
0.72 ms. The call takes the host 0.1 ms. Measured on 2 Zen 5 cores, 8 rows of 12 heads, forward and
backward, dropout 0.1 (padded -> grouped): 128 tokens 33 -> 24 ms fp32, 31 -> 17 ms bf16; 512 tokens
with 37% full rows 731 -> 179 ms fp32, 627 -> 140 ms bf16. The fast dropout mask then saves about
another half. Plain products are faster than torch's CPU flash kernel even without dropout (bf16,
512: 99 -> 48 ms).

Sizes: T tokens, N heads, D width of a head, B rows, S longest row, G rows of a group, L their
length, C blocks of W = reach tokens.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bertds.errors import ConfigError
from bertds.model.dropout import dropout
from bertds.model.precision import product_dtype
from bertds.model.row_layout import RowLayout

HALVES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256
"""The flash operator's kernels exist for heads up to this width, in multiples of 8."""
OLDEST = (8, 0)
"""The compute capability that the flash operator needs: Ampere."""


def grouped_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None = None,
) -> Tensor:
    """Attend within each row; adjacent rows of equal length form one batched product.

    Args:
        query_TND: of all tokens, rows sorted by length; these three may be views.
        key_TND: as the queries.
        value_TND: as the queries.
        layout: must have groups.
        dropout_p: probability to drop an attention weight; 0 outside training.
        reach: number of tokens on each side that a token attends to; None = the whole row.

    Returns:
        [T, N, D].
    """
    assert layout.groups is not None
    sizes = [rows * length for rows, length in layout.groups]
    pieces = zip(*(values.split(sizes) for values in (query_TND, key_TND, value_TND)), strict=True)
    outputs = []
    for (rows, length), parts in zip(layout.groups, pieces, strict=True):
        if length == 0:  # unused filler rows
            continue
        query, key, value = (part.unflatten(0, (rows, length)).transpose(1, 2) for part in parts)
        # Blocks are faster if their three windows are shorter than the row.
        if reach is not None and reach > 0 and length > 3 * reach:
            output_GNLD = _attend_in_blocks(query, key, value, dropout_p, reach)
        else:
            output_GNLD = _attend_in_rows(query, key, value, dropout_p, reach)
        outputs.append(output_GNLD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_in_rows(
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


def _attend_in_blocks(
    query_GNLD: Tensor, key_GNLD: Tensor, value_GNLD: Tensor, dropout_p: float, reach: int
) -> Tensor:
    """The same with time and memory of length * reach instead of length squared."""
    length, width = query_GNLD.shape[-2:]
    blocks = -(-length // reach)
    missing = blocks * reach - length
    # Queries in blocks [G, N, C, W, D]; keys and values of three blocks each [G, N, C, 3 W, D].
    query = F.pad(query_GNLD * width**-0.5, (0, 0, 0, missing)).unflatten(2, (blocks, reach))
    around = (0, 0, reach, reach + missing)
    key = F.pad(key_GNLD, around).unfold(2, 3 * reach, reach)  # [G, N, C, D, 3 W]
    value = F.pad(value_GNLD, around).unfold(2, 3 * reach, reach).transpose(-1, -2)
    # Which keys of its three blocks a query attends to: the same for every block, except the ends.
    own_W1 = torch.arange(reach, device=query.device)[:, None]
    offset_3W = torch.arange(3 * reach, device=query.device) - reach
    near_W3W = (offset_3W - own_W1).abs() <= reach
    first_C11 = torch.arange(0, blocks * reach, reach, device=query.device)[:, None, None]
    key_C13W = first_C11 + offset_3W
    near = near_W3W & (key_C13W >= 0) & (key_C13W < length)
    # Filler queries at the end, whose output is cut off, are less than a window past the last key.
    scores = (query @ key).masked_fill(~near, -torch.inf)
    weights = dropout(scores.softmax(-1), dropout_p, training=True)
    return (weights @ value).flatten(2, 3)[:, :, :length]


def padded_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None = None,
) -> Tensor:
    """Pad the rows to the longest one, attend with a mask, and remove the padding.

    Same arguments and result as :func:`grouped_attention`, for rows in any order.
    """
    tokens, columns = query_TND.shape[0], layout.max_seqlen
    slots_T = layout.padded_slots(tokens, columns)

    def padded(values_TND: Tensor) -> Tensor:
        empty = values_TND.new_zeros((layout.rows * columns, *values_TND.shape[1:]))
        filled = empty.index_copy(0, slots_T, values_TND)
        return filled.unflatten(0, (layout.rows, columns)).transpose(1, 2)

    place_S = torch.arange(columns, device=slots_T.device)
    real_BS = place_S < layout.cu_seqlens.diff()[:, None]
    seen = real_BS[:, None, None, :]
    if reach is not None:
        near_SS = (place_S[:, None] - place_S).abs() <= reach
        # Padding queries after a short row would attend to nothing: let them attend to neighbours.
        seen = (seen | ~real_BS[:, None, :, None]) & near_SS
    output_BNSD = F.scaled_dot_product_attention(
        padded(query_TND), padded(key_TND), padded(value_TND), attn_mask=seen, dropout_p=dropout_p
    )
    return output_BNSD.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


def flash_attention(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None = None,
) -> Tensor:
    """Attend with the flash operator, which supports ragged rows and windows.

    Same arguments and result as :func:`padded_attention`, in bfloat16 or float16. Its dropout uses
    the device's generator, so a seed determines it. torch's public function for ragged rows has no
    dropout. The operator below is not public, but its first ten arguments are the same from torch
    2.11 to 2.13.
    """
    starts, longest = layout.cu_seqlens, layout.max_seqlen
    window = {} if reach is None else {"window_size_left": reach, "window_size_right": reach}
    outputs = torch.ops.aten._flash_attention_forward(
        query_TND,
        key_TND,
        value_TND,
        *(starts, starts, longest, longest),
        *(dropout_p, False, False),
        **window,
    )
    output_TND: Tensor = outputs[0]
    return output_TND


KERNELS = {"flash": flash_attention, "grouped": grouped_attention, "padded": padded_attention}


def attend(
    query_TND: Tensor,
    key_TND: Tensor,
    value_TND: Tensor,
    layout: RowLayout,
    dropout_p: float,
    reach: int | None = None,
) -> Tensor:
    """Attend with the layout's kernel; arguments and result as :func:`grouped_attention`."""
    kernel = KERNELS[layout.kernel]
    return kernel(query_TND, key_TND, value_TND, layout, dropout_p, reach)


# -- choice of the kernel -----------------------------------------------------------------------


@functools.cache
def device_capability(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability (cached)."""
    return torch.cuda.get_device_capability(device)


def missing_for_flash(
    dtype: torch.dtype, head_width: int, capability: tuple[int, int] | None
) -> str:
    """Return why the flash operator cannot be used on a GPU; "" = it can.

    Args:
        dtype: of queries, keys and values.
        head_width: of one head.
        capability: the GPU's compute capability; None = not checked.
    """
    if dtype not in HALVES:
        return f"it requires bf16 or fp16, but the precision is {str(dtype).removeprefix('torch.')}"
    if head_width % 8 or head_width > WIDEST_HEAD:
        return (
            f"it requires a head width that is a multiple of 8 and at most {WIDEST_HEAD}, but "
            f"the width is {head_width}"
        )
    if capability is not None and capability < OLDEST:
        return (
            f"it needs compute capability {OLDEST[0]}.{OLDEST[1]} or higher (Ampere), but this "
            f"GPU has {capability[0]}.{capability[1]}"
        )
    return ""


def choose_kernel(asked: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """Return the kernel for one forward pass: a key of ``KERNELS``.

    A model that was trained with ``flash`` is also scored in float32 or on a CPU, so a kernel that
    cannot be used here is replaced. A training run refuses it earlier: :func:`activate_kernel`.

    Args:
        asked: ``model.attention_kernel``.
        device: of the pass. On ``meta``, where nothing is computed, the requested kernel is used,
            so that tests can cover the path of a GPU.
        dtype: of queries, keys and values.
        head_width: of one head.
    """
    if device.type == "cpu":
        return "padded" if asked == "padded" else "grouped"
    if asked == "padded":
        return "padded"
    if device.type == "cuda":
        lacking = missing_for_flash(dtype, head_width, device_capability(device))
        return "padded" if lacking else "flash"
    return "padded" if asked == "auto" else "flash"


def kernel_of_pass(asked: str, weight: Tensor, head_width: int) -> str:
    """Return :func:`choose_kernel` for a model with this weight, taking autocast into account."""
    dtype = product_dtype(weight.device, weight.dtype)
    return choose_kernel(asked, weight.device, dtype, head_width)


# -- FlashAttention 3 and 4 ---------------------------------------------------------------------


class FlashPackage(NamedTuple):
    """A package with other kernels for the flash operator."""

    title: str
    impl: str
    """Its name for ``torch.nn.attention.activate_flash_attention_impl``."""
    module: str
    """The module that torch imports for it."""
    majors: tuple[int, ...]
    """Compute capabilities (major) on which torch 2.13 allows it."""
    install: str


FLASH_PACKAGES = {
    "fa3": FlashPackage(
        "FlashAttention 3",
        "FA3",
        "flash_attn_interface",
        (9,),
        "pip install 'git+https://github.com/Dao-AILab/flash-attention.git#subdirectory=hopper' "
        "--no-build-isolation",
    ),
    "fa4": FlashPackage(
        "FlashAttention 4",
        "FA4",
        "flash_attn.cute.interface",
        (9, 10),
        "pip install --pre flash-attn-4",
    ),
}


def is_installed(kernel: str) -> bool:
    """Return whether the package of ``fa3`` or ``fa4`` is installed, without importing it."""
    try:
        return find_spec(FLASH_PACKAGES[kernel].module) is not None
    except (ImportError, ValueError):  # a parent package is missing or broken
        return False


def missing_for_package(kernel: str, capability: tuple[int, int] | None, dropout_p: float) -> str:
    """Return why FlashAttention 3 or 4 cannot be used, with the remedy; "" = it can.

    Args:
        kernel: ``fa3`` or ``fa4``.
        capability: the GPU's compute capability; None = no GPU.
        dropout_p: ``model.attention_probs_dropout_prob``.
    """
    package = FLASH_PACKAGES[kernel]
    if capability is None:
        return f"{package.title} requires a GPU"
    if capability[0] not in package.majors:
        allowed = " or ".join(f"{major}.x" for major in package.majors)
        return (
            f"{package.title} requires a GPU of compute capability {allowed}, but this one has "
            f"{capability[0]}.{capability[1]}"
        )
    if dropout_p > 0.0:
        return (
            f"{package.title} does not support dropout, but "
            f"model.attention_probs_dropout_prob={dropout_p}; set it to 0, or use flash"
        )
    if not is_installed(kernel):
        return f"{package.title} is not installed: {package.install}"
    return ""


def activate_kernel(
    asked: str,
    dropout_p: float,
    dtype: torch.dtype,
    head_width: int,
    capability: tuple[int, int] | None,
) -> str:
    """Prepare the process for training with a kernel; return a description of it.

    FlashAttention 3 and 4 replace torch's own kernels behind the flash operator in the whole
    process.

    Args:
        asked: ``model.attention_kernel``.
        dropout_p: ``model.attention_probs_dropout_prob``.
        dtype: of queries, keys and values.
        head_width: of one head.
        capability: the GPU's compute capability; None = no GPU.

    Returns:
        A few words for the log.

    Raises:
        ConfigError: the requested kernel cannot be used here; the message gives the remedy.
    """
    wanted = f"model.attention_kernel={asked}"
    if asked == "padded":
        return "padded rows"
    if capability is None:
        if asked != "auto":
            raise ConfigError(f"{wanted}: requires a GPU; use auto or padded")
        return "rows grouped by length (CPU)"
    lacking = missing_for_flash(dtype, head_width, capability)
    if lacking:
        if asked != "auto":
            raise ConfigError(f"{wanted}: {lacking}; use auto or padded")
        return f"padded rows (FlashAttention: {lacking})"
    for kernel in FLASH_PACKAGES if asked == "auto" else [asked]:
        if kernel in FLASH_PACKAGES:
            lacking = missing_for_package(kernel, capability, dropout_p)
            if not lacking:
                lacking = _activate(FLASH_PACKAGES[kernel])
            if not lacking:
                return f"{FLASH_PACKAGES[kernel].title}, ragged rows"
            if asked != "auto":
                raise ConfigError(f"{wanted}: {lacking}")
    return "FlashAttention 2 (torch's own), ragged rows"


def _activate(package: FlashPackage) -> str:
    """Load a package into the flash operator; return what went wrong, or ""."""
    from torch.nn.attention import activate_flash_attention_impl

    try:
        activate_flash_attention_impl(package.impl)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return f"{package.title} cannot be loaded ({reason}); {package.install}"
    return ""
