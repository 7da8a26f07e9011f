"""Linear layer and cross-entropy over the vocabulary in one, on float32 logits.

Logits of M masked tokens over V words are the largest tensor of a small model. Here they exist
for one chunk of tokens at a time, and their gradient is taken at once, in the forward pass, so
that nothing of size [M, V] waits for the backward pass and no product is done twice. Padded
vocabulary columns get a logit of minus infinity and so an exactly zero gradient.

With a z-loss (PaLM, arXiv:2204.02311) the gradient is that of cross-entropy + z * log(Z)^2, Z being
the softmax's normaliser; the value returned stays the cross-entropy, so that losses of runs with
and without it can be compared.

Weights of words likewise change the gradient of each masked token by a factor, and not the value.

Sizes: M masked tokens, C tokens of a chunk, H width, V vocabulary (padded), K real vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bertds.model.precision import product_dtype, without_autocast

CHUNK_BYTES = 1 << 28
"""Largest float32 logits tensor of one chunk on a CPU (2,198 tokens at 30,528 words)."""
GPU_CHUNK_BYTES = 1 << 29
"""The same on a GPU: each chunk costs the host 30 operators, and the peak of a large micro batch
is in the layers' backward pass."""


def tokens_per_chunk(padded_vocab: int, device_type: str = "cpu") -> int:
    """Return how many tokens' logits are held at once."""
    most = CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES
    return max(64, most // (4 * padded_vocab))


def float_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor, vocab_size: int) -> Tensor:
    """Return float32 logits [C, V] with minus infinity in the padded columns."""
    logits_CV = F.linear(hidden_CH, weight_VH, bias_V).float()
    logits_CV[:, vocab_size:] = -torch.inf
    return logits_CV


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed loss and number of correct tokens; the gradient is computed beside them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_M: Tensor,
        vocab_size: int,
        with_gradient: bool,
        z_weight: float,
        word_weights_K: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden_MH.device, hidden_MH.dtype)
        ctx.dtypes = (hidden_MH.dtype, weight_VH.dtype, bias_V.dtype)
        loss_sum = hidden_MH.new_zeros((), dtype=torch.float32)
        correct = labels_M.new_zeros(())
        with without_autocast(hidden_MH.device):
            hidden_MH, weight_VH, bias_V = (t.to(dtype) for t in (hidden_MH, weight_VH, bias_V))
            chunk = tokens_per_chunk(weight_VH.shape[0], weight_VH.device.type)
            # Sums over several chunks are kept in float32.
            sum_dtype = dtype if labels_M.numel() <= chunk else torch.float32
            hidden_grads, weight_grad, bias_grad = [], None, None
            for hidden_CH, labels_C in zip(
                hidden_MH.split(chunk), labels_M.split(chunk), strict=True
            ):
                logits_CV = float_logits(hidden_CH, weight_VH, bias_V, vocab_size)
                log_probs_CV = logits_CV.log_softmax(-1)
                if z_weight and with_gradient:
                    log_z_C1 = logits_CV[:, :1] - log_probs_CV[:, :1]
                del logits_CV
                real_C1 = (labels_C >= 0)[:, None]  # fillers have a label below 0
                words_C1 = labels_C[:, None].clamp_min(0)
                picked_C1 = log_probs_CV.gather(1, words_C1)
                loss_sum -= (picked_C1 * real_C1).sum()
                correct += (log_probs_CV.argmax(1) == labels_C).sum()
                if not with_gradient:
                    continue
                # d loss / d logits = softmax - one-hot. Fillers' rows of it are not zero, but
                # leave no trace: they are multiplied with zeros wherever they are used.
                grad_CV = log_probs_CV.exp_()
                if z_weight:  # d z log(Z)^2 / d logits = 2 z log(Z) softmax
                    grad_CV.mul_(1.0 + 2.0 * z_weight * log_z_C1)
                grad_CV.scatter_add_(1, words_C1, torch.full_like(picked_C1, -1.0))
                if word_weights_K is not None:
                    grad_CV.mul_(word_weights_K[words_C1])
                bias_part = real_C1[:, 0].to(grad_CV.dtype) @ grad_CV
                grad_CV = grad_CV.to(dtype)
                hidden_grads.append((grad_CV @ weight_VH).mul_(real_C1))
                weight_part = (grad_CV.t() @ (hidden_CH * real_C1)).to(sum_dtype)
                weight_grad = weight_part if weight_grad is None else weight_grad.add_(weight_part)
                bias_grad = bias_part if bias_grad is None else bias_grad.add_(bias_part)
        ctx.gradients = None
        if with_gradient:
            if weight_grad is None or bias_grad is None:  # no masked token at all
                weight_grad, bias_grad = torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
            hidden_grad = torch.cat(hidden_grads) if hidden_grads else torch.zeros_like(hidden_MH)
            ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_cross_entropy can be computed only once")
        # Scaled in place: these are ours alone, and a copy of [V, H] would be dear.
        scaled = (g.mul_(loss_grad).to(d) for g, d in zip(ctx.gradients, ctx.dtypes, strict=True))
        ctx.gradients = None
        return (*scaled, None, None, None, None, None)


def plain_cross_entropy(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_M: Tensor,
    vocab_size: int,
    z_weight: float = 0.0,
    word_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same loss step by step under autograd: the reference, and the way for fp16."""
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
        weight_VH: [V, H], the word table, padded.
        bias_V: [V].
        labels_M: int64 [M], all below vocab_size; below 0: the token counts for nothing.
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
        return _LinearCrossEntropy.apply(
            *inputs, labels_M, vocab_size, with_gradient, z_weight, word_weights_K
        )
    # fp16: the loss scale must be in the gradient before it is cast, or small ones become 0. So
    # each chunk is recomputed in the backward pass instead.
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
