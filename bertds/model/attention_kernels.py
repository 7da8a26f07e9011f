"""How attention is computed within each row of a flat row of real tokens.

Three kernels give the same result. One is chosen per forward pass, by :func:`choose_kernel`:

- ``flash``: torch's FlashAttention operator for ragged rows, with dropout. CUDA in bf16 and fp16.
  Queries, keys and values are strided views of one product: no copy, no padding. With
  FlashAttention 3 or 4 installed, the same operator runs their kernels, see
  :func:`activate_kernel`.
- ``grouped``: rows sorted by length, one batched product per length, no mask. CPU.
- ``padded``: pad, masked scaled_dot_product_attention, unpad. Everywhere else, and the reference.

Measured on one H100, BERT-large, one layer forward and backward with dropout 0.1 (padded ->
flash): 26,845 tokens of 128 at most 2.50 -> 0.87 ms; 13,797 tokens of 512 at most 3.27 -> 0.72 ms.
The call takes the host 0.1 ms. Measured on 2 Zen 5 cores, 8 rows of 12 heads, forward and
backward, dropout 0.1 (padded -> grouped): 128 tokens 33 -> 24 ms fp32, 31 -> 17 ms bf16; 512
tokens with 37 % full rows 731 -> 179 ms fp32, 627 -> 140 ms bf16; the quick dropout mask then
takes off about another half. Plain products beat torch's CPU flash kernel even without dropout
(bf16, 512: 99 -> 48 ms).

Sizes: T tokens, N heads, D width of a head, B rows, S longest row, G rows of a group, L their
length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
"""Compute capability that the flash operator needs: Ampere."""


def grouped_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend within each row; rows of equal length are neighbours and make one product.

    Args:
        qkv_T3ND: queries, keys and values of all tokens, rows sorted by length.
        layout: must know its groups.
        dropout_p: probability to drop an attention weight; 0 outside training.

    Returns:
        [T, N, D].
    """
    assert layout.groups is not None
    width = qkv_T3ND.shape[-1]
    pieces = qkv_T3ND.split([rows * length for rows, length in layout.groups])
    outputs = []
    for (rows, length), piece in zip(layout.groups, pieces, strict=True):
        if length == 0:  # filler rows that were not needed
            continue
        piece_3GNLD = piece.unflatten(0, (rows, length)).permute(2, 0, 3, 1, 4)
        query_GNLD, key_GNLD, value_GNLD = piece_3GNLD.unbind(0)
        scores_GNLL = (query_GNLD * width**-0.5) @ key_GNLD.transpose(-1, -2)
        weights_GNLL = dropout(scores_GNLL.softmax(-1), dropout_p, training=True)
        outputs.append((weights_GNLL @ value_GNLD).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def padded_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Pad the rows to the longest, attend under a mask, drop the padding again.

    Same arguments and result as :func:`grouped_attention`, for rows in any order.
    """
    tokens, columns = qkv_T3ND.shape[0], layout.max_seqlen
    slots_T = layout.padded_slots(tokens, columns)
    padded = qkv_T3ND.new_zeros((layout.rows * columns, *qkv_T3ND.shape[1:]))
    padded_BS3ND = padded.index_copy(0, slots_T, qkv_T3ND).unflatten(0, (layout.rows, columns))
    query_BNSD, key_BNSD, value_BNSD = padded_BS3ND.permute(2, 0, 3, 1, 4).unbind(0)
    lengths_B = layout.cu_seqlens.diff()
    real_BS = torch.arange(columns, device=slots_T.device) < lengths_B[:, None]
    output_BNSD = F.scaled_dot_product_attention(
        query_BNSD, key_BNSD, value_BNSD, attn_mask=real_BS[:, None, None, :], dropout_p=dropout_p
    )
    return output_BNSD.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


def flash_attention(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend with the flash operator, which takes ragged rows as they are.

    Same arguments and result as :func:`padded_attention`, in bfloat16 or float16. Its dropout
    draws from the device's generator, so a seed fixes it. The operator is not public, but its
    first ten arguments are the same from torch 2.11 to 2.13.
    """
    query_TND, key_TND, value_TND = qkv_T3ND.unbind(1)  # strided views
    starts, longest = layout.cu_seqlens, layout.max_seqlen
    outputs = torch.ops.aten._flash_attention_forward(
        query_TND, key_TND, value_TND, starts, starts, longest, longest, dropout_p, False, False
    )
    output_TND: Tensor = outputs[0]
    return output_TND


KERNELS: dict[str, Callable[[Tensor, RowLayout, float], Tensor]] = {
    "flash": flash_attention,
    "grouped": grouped_attention,
    "padded": padded_attention,
}


def attend(qkv_T3ND: Tensor, layout: RowLayout, dropout_p: float) -> Tensor:
    """Attend within each row with the layout's kernel; returns [T, N, D]."""
    return KERNELS[layout.kernel](qkv_T3ND, layout, dropout_p)


# -- which one ----------------------------------------------------------------------------------


@functools.cache
def device_capability(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability; asked for once."""
    return torch.cuda.get_device_capability(device)


def missing_for_flash(
    dtype: torch.dtype, head_width: int, capability: tuple[int, int] | None
) -> str:
    """Return why the flash operator cannot be used on a GPU; "" = it can.

    Args:
        dtype: of queries, keys and values.
        head_width: of one head.
        capability: the GPU's compute capability; None = not looked at.
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
    """Return the kernel that computes one forward pass: a key of ``KERNELS``.

    A model trained with ``flash`` is also scored in float32 or on a CPU, so what cannot be used
    here is replaced; a training run has refused it before, see :func:`activate_kernel`.

    Args:
        asked: ``model.attention_kernel``.
        device: where the pass runs. On ``meta``, where nothing is computed, what is asked for is
            taken: tests drive the GPU's path there.
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
    """Return :func:`choose_kernel` for a model with this weight, autocast considered."""
    dtype = product_dtype(weight.device, weight.dtype)
    return choose_kernel(asked, weight.device, dtype, head_width)


# -- FlashAttention 3 and 4 ---------------------------------------------------------------------


class FlashPackage(NamedTuple):
    """A package that brings other kernels for the flash operator."""

    title: str
    impl: str
    """Its name for ``torch.nn.attention.activate_flash_attention_impl``."""
    module: str
    """What torch imports for it."""
    majors: tuple[int, ...]
    """Compute capabilities (major) that torch 2.13 lets it run on."""
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
    """Return whether the package behind ``fa3`` or ``fa4`` is found, without loading it."""
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
    """Make the process ready to train with a kernel; say which one runs.

    FlashAttention 3 and 4 take the place of torch's own kernels behind the flash operator, for
    the whole process.

    Args:
        asked: ``model.attention_kernel``.
        dropout_p: ``model.attention_probs_dropout_prob``.
        dtype: of queries, keys and values.
        head_width: of one head.
        capability: the GPU's compute capability; None = no GPU.

    Returns:
        A few words for the log.

    Raises:
        ConfigError: what was asked for cannot be used here; the message says what to do.
    """
    wanted = f"model.attention_kernel={asked}"
    if asked == "padded":
        return "padded rows"
    if capability is None:
        if asked != "auto":
            raise ConfigError(f"{wanted}: requires a GPU; use auto or padded")
        return "grouped by row length (CPU)"
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
    """Load a package into the flash operator; returns what went wrong."""
    from torch.nn.attention import activate_flash_attention_impl

    try:
        activate_flash_attention_impl(package.impl)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return f"{package.title} cannot be loaded ({reason}); {package.install}"
    return ""
