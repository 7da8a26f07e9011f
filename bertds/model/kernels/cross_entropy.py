"""Cross-entropy over the vocabulary and its gradient, as one Triton kernel.

A program reads a token's logits, which are written once before and twice read here, the second time
from the cache, and writes the gradient in their place. In float32 as torch's operators, which move
ten times as many bytes.

``TRITON_INTERPRET=1``, set before Triton is imported, runs the kernel on a CPU (for tests).

Sizes: C tokens, V vocabulary (padded), K real vocabulary.
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from bertds.model.kernels.launch import kernel

BLOCK = 4096
"""Words that a program holds at a time."""
WARPS = 8


@kernel(WARPS)
def _cross_entropy(
    logits,
    labels,
    word_weights,
    losses,
    hits,
    real,
    padded,
    z_weight: tl.float32,
    GRADIENT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    row = logits + token.to(tl.int64) * padded
    label = tl.load(labels + token)
    largest, best, total = -1e38, -1, 0.0  # finite: -inf less -inf is no number
    for low in range(0, real, BLOCK):
        word = low + tl.arange(0, BLOCK)
        x = tl.load(row + word, mask=word < real, other=-float("inf")).to(tl.float32)
        here, place = tl.max(x, 0, return_indices=True)
        best = tl.where(here > largest, low + place, best)  # of equal ones the first
        new = tl.maximum(largest, here)
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), 0)
        largest = new
    log_z = largest + tl.log(total)
    counts = label >= 0
    picked = tl.load(row + tl.maximum(label, 0)).to(tl.float32)
    tl.store(losses + token, tl.where(counts, log_z - picked, 0.0))
    tl.store(hits + token, ((best == label) & counts).to(tl.int32))
    if GRADIENT:
        tl.debug_barrier()  # every warp has read the label's logit before one overwrites it
        factor = tl.where(counts, 1.0, 0.0)
        if WEIGHTED:
            factor *= tl.load(word_weights + tl.maximum(label, 0))
        scale = 1.0 + 2.0 * z_weight * log_z
        for low in range(0, padded, BLOCK):
            word = low + tl.arange(0, BLOCK)
            x = tl.load(row + word, mask=word < real, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - log_z) * scale
            gradient = tl.where(word == label, gradient - 1.0, gradient) * factor
            tl.store(row + word, gradient.to(logits.dtype.element_ty), mask=word < padded)


def cross_entropy(
    logits_CV: Tensor,
    labels_C: Tensor,
    vocab_size: int,
    *,
    with_gradient: bool,
    z_weight: float = 0.0,
    word_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each token's loss, float32 [C], and whether its label's logit is the highest, int32.

    Args:
        logits_CV: contiguous. With a gradient its memory is taken for it: d loss / d logits, 0 for
            padded words and for tokens without a label.
        labels_C: int64, below ``vocab_size``; below 0: the token has no loss.
        vocab_size: the real vocabulary K <= V.
        with_gradient: compute it.
        z_weight: as for ``linear_cross_entropy``.
        word_weights_K: likewise.
    """
    tokens, padded = logits_CV.shape
    losses = logits_CV.new_empty(tokens, dtype=torch.float32)
    hits = logits_CV.new_empty(tokens, dtype=torch.int32)
    _cross_entropy(
        (tokens, 1, 1),
        logits_CV,
        labels_C,
        losses if word_weights_K is None else word_weights_K,
        losses,
        hits,
        vocab_size,
        padded,
        z_weight,
        GRADIENT=with_gradient,
        WEIGHTED=word_weights_K is not None,
        BLOCK=BLOCK,
    )
    return losses, hits
