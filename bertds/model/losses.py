"""Linear layer and cross-entropy over the vocabulary in one operation, with float32 logits.

The logits of M masked tokens over V words are the largest tensor of a small model. Here they exist
only for one chunk of tokens at a time. Their gradient is computed in the forward pass, so nothing
of size [M, V] is kept for the backward pass and no product is computed twice. Padded vocabulary
columns get a logit of minus infinity and so an exactly zero gradient.

With a z-loss (PaLM, arXiv:2204.02311) the gradient is that of cross-entropy + z * log(Z)^2, where Z
is the normalizer of the softmax. The returned value is still the cross-entropy, so that losses of
runs with and without it can be compared.

Word weights likewise multiply the gradient of each masked token, but do not change the value.

Sizes: M masked tokens, C tokens of a chunk, H width, V vocabulary (padded), K real vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bertds.model.kernels import kernels_run_on
from bertds.model.precision import product_dtype, without_autocast

CHUNK_BYTES = 1 << 28
"""Largest float32 logits tensor of one chunk on a CPU, in bytes (2,198 tokens at 30,528 words)."""
GPU_CHUNK_BYTES = 1 << 29
"""The same on a GPU. Each chunk costs the host 10 operators, and the memory peak of a large micro
batch is in the layers' backward pass."""


def tokens_per_chunk(padded_vocab: int, device_type: str = "cpu") -> int:
    """Return the number of tokens per chunk."""
    most = CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES
    return max(64, most // (4 * padded_vocab))


def float_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor, vocab_size: int) -> Tensor:
    """Return float32 logits [C, V] with minus infinity in the padded columns."""
    logits_CV = F.linear(hidden_CH, weight_VH, bias_V).float()
    logits_CV[:, vocab_size:] = -torch.inf
    return logits_CV


class _Sizes(NamedTuple):
    """The arguments that are the same for all chunks of one call."""

    vocab_size: int
    with_gradient: bool
    z_weight: float
    word_weights_K: Tensor | None


class _Chunk(NamedTuple):
    """Sums over the tokens of a chunk, and its gradients (None if they are not needed)."""

    loss: Tensor
    correct: Tensor
    hidden_grad_CH: Tensor | None = None
    weight_grad_VH: Tensor | None = None
    bias_grad_V: Tensor | None = None


def _score_by_operators(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_C: Tensor, sizes: _Sizes
) -> _Chunk:
    logits_CV = float_logits(hidden_CH, weight_VH, bias_V, sizes.vocab_size)
    log_probs_CV = logits_CV.log_softmax(-1)
    log_z_C1 = logits_CV[:, :1] - log_probs_CV[:, :1] if sizes.z_weight else None
    del logits_CV
    real_C1 = (labels_C >= 0)[:, None]  # fillers have a label below 0
    words_C1 = labels_C[:, None].clamp_min(0)
    picked_C1 = log_probs_CV.gather(1, words_C1)
    loss = -(picked_C1 * real_C1).sum()
    correct = (log_probs_CV.argmax(1) == labels_C).sum()
    if not sizes.with_gradient:
        return _Chunk(loss, correct)
    # d loss / d logits = softmax - one-hot. The rows of fillers are not zero, but have no effect:
    # they are multiplied by zeros wherever they are used.
    grad_CV = log_probs_CV.exp_()
    if log_z_C1 is not None:  # d z log(Z)^2 / d logits = 2 z log(Z) softmax
        grad_CV.mul_(1.0 + 2.0 * sizes.z_weight * log_z_C1)
    grad_CV.scatter_add_(1, words_C1, torch.full_like(picked_C1, -1.0))
    # A word's weight scales the whole gradient of its token, and so all products below.
    if sizes.word_weights_K is not None:
        grad_CV.mul_(sizes.word_weights_K[words_C1])
    bias_grad_V = real_C1[:, 0].to(grad_CV.dtype) @ grad_CV
    grad_CV = grad_CV.to(hidden_CH.dtype)
    hidden_grad_CH = (grad_CV @ weight_VH).mul_(real_C1)
    return _Chunk(loss, correct, hidden_grad_CH, grad_CV.t() @ (hidden_CH * real_C1), bias_grad_V)


def _score_by_kernel(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_C: Tensor, sizes: _Sizes
) -> _Chunk:
    from bertds.model.kernels.cross_entropy import cross_entropy  # needs Triton

    logits_CV = F.linear(hidden_CH, weight_VH, bias_V)
    losses_C, hits_C = cross_entropy(logits_CV, labels_C, **sizes._asdict())
    if not sizes.with_gradient:
        return _Chunk(losses_C.sum(), hits_C.sum())
    grad_CV = logits_CV  # the kernel has replaced the logits by their gradient
    return _Chunk(
        losses_C.sum(),
        hits_C.sum(),
        grad_CV @ weight_VH,
        grad_CV.t() @ hidden_CH,
        grad_CV.sum(0, dtype=torch.float32),
    )


def _add_up(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    part = part.to(dtype)
    return part if total is None else total.add_(part)


class _LinearCrossEntropy(torch.autograd.Function):
    """The summed loss and the number of correct tokens; computes the gradient in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_M: Tensor,
        sizes: _Sizes,
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden_MH.device, hidden_MH.dtype)
        ctx.dtypes = (hidden_MH.dtype, weight_VH.dtype, bias_V.dtype)
        loss_sum = hidden_MH.new_zeros((), dtype=torch.float32)
        correct = labels_M.new_zeros(())
        score = _score_by_kernel if kernels_run_on(hidden_MH.device.type) else _score_by_operators
        # The products run in autocast's dtype, chosen here because autograd functions bypass
        # autocast.
        with without_autocast(hidden_MH.device):
            hidden_MH, weight_VH, bias_V = (t.to(dtype) for t in (hidden_MH, weight_VH, bias_V))
            chunk = tokens_per_chunk(weight_VH.shape[0], weight_VH.device.type)
            # Sums over several chunks are kept in float32.
            sum_dtype = dtype if labels_M.numel() <= chunk else torch.float32
            hidden_grads: list[Tensor] = []
            weight_grad = bias_grad = None
            chunks = zip(hidden_MH.split(chunk), labels_M.split(chunk), strict=True)
            for hidden_CH, labels_C in chunks if labels_M.numel() else ():
                found = score(hidden_CH, weight_VH, bias_V, labels_C, sizes)
                loss_sum += found.loss
                correct += found.correct
                if found.hidden_grad_CH is not None:
                    assert found.weight_grad_VH is not None and found.bias_grad_V is not None
                    hidden_grads.append(found.hidden_grad_CH)
                    weight_grad = _add_up(weight_grad, found.weight_grad_VH, sum_dtype)
                    bias_grad = _add_up(bias_grad, found.bias_grad_V, torch.float32)
        ctx.gradients = None
        # Kept for the backward pass: the gradients of the three inputs for a loss gradient of 1.
        if sizes.with_gradient:
            if weight_grad is None or bias_grad is None:  # no masked token at all
                weight_grad, bias_grad = torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
            whole = len(hidden_grads) == 1
            hidden_grad = hidden_grads[0] if whole else torch.cat([hidden_MH[:0], *hidden_grads])
            ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_cross_entropy can be computed only once")
        # Scaled in place: no other code holds these tensors, and a copy of [V, H] is expensive.
        scaled = (g.mul_(loss_grad).to(d) for g, d in zip(ctx.gradients, ctx.dtypes, strict=True))
        ctx.gradients = None
        return (*scaled, None, None)


def plain_cross_entropy(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_M: Tensor,
    vocab_size: int,
    z_weight: float = 0.0,
    word_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same loss, operator by operator under autograd: the reference, and used for fp16."""
    logits_MV = float_logits(hidden_MH, weight_VH, bias_V, vocab_size)
    losses_M = F.cross_entropy(logits_MV, labels_M, reduction="none")  # 0 for the label -100
    loss_sum = losses_M.sum()
    if z_weight or word_weights_K is not None:
        trained_M = losses_M
        if z_weight:
            trained_M = trained_M + z_weight * logits_MV.logsumexp(-1).square() * (labels_M >= 0)
        if word_weights_K is not None:
            trained_M = trained_M * word_weights_K[labels_M.clamp_min(0)]
        trained = trained_M.sum()
        loss_sum = loss_sum.detach() + (trained - trained.detach())  # its gradient, not its value
    return loss_sum, (logits_MV.argmax(1) == labels_M).sum()


def linear_cross_entropy(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_M: Tensor,
    vocab_size: int,
    z_weight: float = 0.0,
    word_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score masked tokens against the vocabulary.

    Args:
        hidden_MH: [M, H], output of the masked-LM transform; M may be 0.
        weight_VH: [V, H], the padded word embeddings.
        bias_V: [V].
        labels_M: int64 [M], all below vocab_size; a token with a negative label is ignored.
        vocab_size: the real vocabulary K <= V.
        z_weight: weight of the z-loss in the gradient; 0 = none.
        word_weights_K: float32 [K], factor of each label's gradient; None = 1 for all.

    Returns:
        The summed loss (float32 scalar) and the number of tokens whose label has the highest
        logit (int64 scalar).
    """
    inputs = (hidden_MH, weight_VH, bias_V)
    dtype = product_dtype(hidden_MH.device, hidden_MH.dtype)
    if dtype != torch.float16:
        with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        sizes = _Sizes(vocab_size, with_gradient, z_weight, word_weights_K)
        return _LinearCrossEntropy.apply(*inputs, labels_M, sizes)
    # fp16: the loss scale must be applied before the gradient is cast, or small values become 0.
    # So each chunk is recomputed in the backward pass instead.
    chunk = tokens_per_chunk(weight_VH.shape[0], weight_VH.device.type)
    if labels_M.numel() <= chunk:
        return plain_cross_entropy(*inputs, labels_M, vocab_size, z_weight, word_weights_K)
    results = [
        checkpoint(
            plain_cross_entropy,
            hidden_CH,
            weight_VH,
            bias_V,
            labels_C,
            vocab_size,
            z_weight,
            word_weights_K,
            use_reentrant=False,
        )
        for hidden_CH, labels_C in zip(hidden_MH.split(chunk), labels_M.split(chunk), strict=True)
    ]
    losses, corrects = zip(*results, strict=True)
    return torch.stack(losses).sum(), torch.stack(corrects).sum()
