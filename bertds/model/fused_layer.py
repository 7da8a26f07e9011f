"""A whole BERT layer as one autograd function over the kernels of ``add_norm``.

    hidden -> q, k, v -> attention -> dense -> dropout + residual + LayerNorm
           -> wide -> GELU -> dense -> dropout + residual + LayerNorm

In the last layer, everything after attention is computed only for the tokens that a loss reads:
the masked ones and the first of each row, about 17% of all.

Matrix products are cuBLAS's. Everything between two of them is one kernel in each direction. The
backward pass is written out: gradients of residuals are added within the products that make the
other addend, and neither dropout masks nor normalized values are kept.

Gradients are those of the layer's modules; parameters stay where they are, under the same names.

Rows of at most ``LONGEST_ROW`` tokens take the attention of ``short_rows``, which computes a row
and head at once, on GPUs that have the shared memory for it; other rows of at most
``LONGEST_OWN_ROW`` take that of ``long_rows``. Longer rows, and FlashAttention 3 and 4, take
torch's flash operator.

Sizes: T tokens, H width, I intermediate width, N heads, D width of a head, B rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertds.model.attention import side_by_side
from bertds.model.bert import BertForPreTraining
from bertds.model.encoder import GELU_FORMS, EncoderLayer
from bertds.model.kernels.add_norm import add_norm, add_norm_backward, draw_keys
from bertds.model.kernels.column_sums import finish_sums, gelu_backward, join_gradients
from bertds.model.kernels.long_rows import (
    Attended,
    attend_long_rows,
    attend_long_rows_backward,
)
from bertds.model.kernels.short_rows import (
    HEAD_WIDTHS,
    LONGEST_ROW,
    attend_short_rows,
    attend_short_rows_backward,
    is_large_enough,
)
from bertds.model.row_layout import RowLayout

DROPOUTS = 3
"""Dropouts of a layer: of attention, and of each half's output."""
LONGEST_OWN_ROW = 512
"""Longest row whose attention is not the flash operator's."""


class Settings(NamedTuple):
    """What does not change from step to step."""

    heads: int
    attention_dropout_p: float
    hidden_dropout_p: float
    eps: float
    approximate: str
    """Of GELU: "none" or "tanh"."""
    longest_own: int
    """Longest row whose attention is computed by our own kernels; 0 = none."""


class _Attended(NamedTuple):
    output_TND: Tensor
    saved: tuple[Tensor, ...]
    """What the backward pass needs besides: nothing for short rows, one tensor for long ones, three
    for the flash operator."""


def _attend(
    qkv_T3ND: Tensor, starts: Tensor, longest: int, p: float, key: Tensor, longest_own: int
) -> _Attended:
    if longest <= min(longest_own, LONGEST_ROW) and is_large_enough(qkv_T3ND.device):
        return _Attended(attend_short_rows(qkv_T3ND, starts, longest, p, key), ())
    if longest <= longest_own:
        output_TND, normalizers = attend_long_rows(qkv_T3ND, starts, longest, p, key)
        return _Attended(output_TND, (normalizers,))
    q, k, v = qkv_T3ND.unbind(1)
    output_TND, normalizers, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, starts, longest, longest, p, False, False
    )
    return _Attended(output_TND, (normalizers, state, unused))


def _attend_backward(
    grad_TND: Tensor,
    qkv_T3ND: Tensor,
    attended: _Attended,
    starts: Tensor,
    longest: int,
    p: float,
    key: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``qkv_T3ND`` and float32 [P, 3 H], which add up to its sum over T."""
    if not attended.saved:
        return attend_short_rows_backward(grad_TND, qkv_T3ND, starts, longest, p, key)
    if len(attended.saved) == 1:
        own = Attended(attended.output_TND, attended.saved[0])
        return attend_long_rows_backward(grad_TND, qkv_T3ND, own, starts, longest, p, key)
    q, k, v = qkv_T3ND.unbind(1)
    normalizers, state, unused = attended.saved
    parts = torch.ops.aten._flash_attention_backward(
        grad_TND,
        q,
        k,
        v,
        attended.output_TND,
        normalizers,
        starts,
        starts,
        longest,
        longest,
        p,
        False,
        state,
        unused,
    )
    return join_gradients(parts)


def _spread(grad_RH: Tensor, read: Tensor, tokens: int) -> Tensor:
    """Undo ``index_select(0, read)``: return [T, H], 0 where nothing was read."""
    return grad_RH.new_zeros(tokens, grad_RH.shape[1]).index_add_(0, read, grad_RH)


class FusedLayer(torch.autograd.Function):
    """The layer as a function of its input and its parameters."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden_TH: Tensor,
        starts: Tensor,
        read: Tensor | None,
        longest: int,
        keys: tuple[Tensor, ...],
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        settings: Settings,
        query_weight: Tensor,
        key_weight: Tensor,
        value_weight: Tensor,
        query_bias: Tensor,
        key_bias: Tensor,
        value_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        gamma1: Tensor,
        beta1: Tensor,
        wide_weight: Tensor,
        wide_bias: Tensor,
        narrow_weight: Tensor,
        narrow_bias: Tensor,
        gamma2: Tensor,
        beta2: Tensor,
    ) -> Tensor:
        heads, attention_p, hidden_p, eps, approximate, own = settings
        attention_key, first_key, second_key = keys
        tokens, width = hidden_TH.shape
        qkv_TX = F.linear(hidden_TH, qkv_weight, qkv_bias)
        qkv_T3ND = qkv_TX.view(tokens, 3, heads, width // heads)
        attended = _attend(qkv_T3ND, starts, longest, attention_p, attention_key, own)
        gathered_TH, residual_TH = attended.output_TND.view(tokens, width), hidden_TH
        if read is not None:  # from here on, T is the number of tokens that are read
            gathered_TH = gathered_TH.index_select(0, read)
            residual_TH = hidden_TH.index_select(0, read)
        dense_TH = F.linear(gathered_TH, out_weight, out_bias)
        middle_TH, sum1_TH, statistics1 = add_norm(
            dense_TH, residual_TH, gamma1, beta1, eps, hidden_p, first_key
        )
        wide_TI = F.linear(middle_TH, wide_weight, wide_bias)
        active_TI = F.gelu(wide_TI, approximate=approximate)
        dense_TH = F.linear(active_TI, narrow_weight, narrow_bias)
        output_TH, sum2_TH, statistics2 = add_norm(
            dense_TH, middle_TH, gamma2, beta2, eps, hidden_p, second_key
        )
        ctx.save_for_backward(
            *(hidden_TH, starts, read, *keys, qkv_T3ND, attended.output_TND, gathered_TH),
            *(sum1_TH, statistics1, middle_TH, wide_TI, active_TI, sum2_TH, statistics2),
            *(qkv_weight, out_weight, gamma1, wide_weight, narrow_weight, gamma2),
            *attended.saved,
        )
        ctx.longest, ctx.settings = longest, settings
        return output_TH

    @staticmethod
    @once_differentiable
    def backward(  # noqa: D102
        ctx: Any, grad_TH: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden_TH, starts, read, attention_key, first_key, second_key, *more = ctx.saved_tensors
        qkv_T3ND, output_TND, gathered_TH, *more = more
        sum1_TH, statistics1, middle_TH, wide_TI, active_TI, sum2_TH, statistics2, *more = more
        qkv_weight, out_weight, gamma1, wide_weight, narrow_weight, gamma2, *saved = more
        _, attention_p, hidden_p, _, approximate, _ = ctx.settings

        # The second half, from its end.
        residual_TH, dense_TH, norm2_sums = add_norm_backward(
            grad_TH.contiguous(), sum2_TH, statistics2, gamma2, hidden_p, second_key
        )
        narrow_grad = dense_TH.t() @ active_TI
        wide_grad_TI, wide_sums = gelu_backward(dense_TH @ narrow_weight, wide_TI, approximate)
        wide_grad = wide_grad_TI.t() @ middle_TH
        # In place, so that the sum with the residual's gradient is part of the product. ``dense``
        # may be the same tensor: it is not read again.
        middle_grad_TH = residual_TH.addmm_(wide_grad_TI, wide_weight)
        del wide_grad_TI, dense_TH

        # The first half.
        residual_TH, dense_TH, norm1_sums = add_norm_backward(
            middle_grad_TH, sum1_TH, statistics1, gamma1, hidden_p, first_key
        )
        out_grad = dense_TH.t() @ gathered_TH
        gathered_grad_TH = dense_TH @ out_weight
        if read is not None:
            gathered_grad_TH = _spread(gathered_grad_TH, read, hidden_TH.shape[0])
            residual_TH = _spread(residual_TH, read, hidden_TH.shape[0])
        qkv_grad, qkv_sums = _attend_backward(
            gathered_grad_TH.view_as(output_TND),
            qkv_T3ND,
            _Attended(output_TND, tuple(saved)),
            starts,
            ctx.longest,
            attention_p,
            attention_key,
        )
        qkv_grad_T3H = qkv_grad.view(hidden_TH.shape[0], -1)
        qkv_weight_grad = qkv_grad_T3H.t() @ hidden_TH
        hidden_grad_TH = None
        if ctx.needs_input_grad[0]:
            hidden_grad_TH = residual_TH.addmm_(qkv_grad_T3H, qkv_weight)
        # All that is a sum over tokens, in one kernel at the end.
        width, wide = hidden_TH.shape[1], wide_TI.shape[1]
        sums = finish_sums((norm2_sums, wide_sums, norm1_sums, qkv_sums), hidden_TH.dtype)
        gamma2_grad, beta2_grad, narrow_bias_grad, wide_bias_grad, *rest = sums.split(
            [width, width, width, wide, *([width] * 6)]
        )
        gamma1_grad, beta1_grad, out_bias_grad, *qkv_bias_grads = rest
        return (
            *(hidden_grad_TH, *([None] * 7)),
            *(*qkv_weight_grad.chunk(3), *qkv_bias_grads),
            *(out_grad, out_bias_grad, gamma1_grad, beta1_grad),
            *(wide_grad, wide_bias_grad, narrow_grad, narrow_bias_grad, gamma2_grad, beta2_grad),
        )


_PARAMETERS = (
    *("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
    *("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
    *("attention.output.dense.weight", "attention.output.dense.bias"),
    *("attention.output.LayerNorm.weight", "attention.output.LayerNorm.bias"),
    *("intermediate.dense.weight", "intermediate.dense.bias"),
    *("output.dense.weight", "output.dense.bias"),
    *("output.LayerNorm.weight", "output.LayerNorm.bias"),
)
"""A layer's parameters in the order in which :class:`FusedLayer` takes them."""


class _Fused:
    """Replaces the ``forward`` of a layer; scoring takes the layer's modules.

    What does not change between passes is looked up once: the host starts a layer in about a
    millisecond, most of it Python.
    """

    def __init__(self, layer: EncoderLayer, number: int, settings: Settings) -> None:
        self._layer = layer
        self._number = number
        self._settings = settings
        # Their owners' dictionaries: ``functional_call`` puts other tensors there for a while.
        self._places: list[tuple[dict[str, Tensor], str]] = []
        for path in _PARAMETERS:
            owner, _, name = path.rpartition(".")
            parameters = cast(dict[str, Tensor], layer.get_submodule(owner)._parameters)
            self._places.append((parameters, name))
        self._joined: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, hidden_TH: Tensor, layout: RowLayout, read: Tensor | None = None) -> Tensor:
        parameters = [owner[name] for owner, name in self._places]
        usual = hidden_TH.dtype == parameters[0].dtype and layout.kernel == "flash"
        if not (self._layer.training and usual):
            return EncoderLayer.forward(self._layer, hidden_TH, layout, read)
        if layout.keys is None:
            keys = draw_keys(DROPOUTS, hidden_TH.device)
        else:
            keys = layout.keys[DROPOUTS * self._number : DROPOUTS * (self._number + 1)]
        output_TH: Tensor = FusedLayer.apply(
            hidden_TH,
            layout.cu_seqlens,
            read,
            layout.max_seqlen,
            keys,
            self._join(*parameters[:3]),
            self._join(*parameters[3:6]),
            self._settings,
            *parameters,
        )
        return output_TH

    def _join(self, *parts: Tensor) -> Tensor:
        """Return :func:`side_by_side`, kept where it is a view."""
        places = tuple(part.data_ptr() for part in parts)
        joined = self._joined.get(places)
        if joined is None:
            joined = side_by_side(*parts)
            if joined.data_ptr() == places[0]:
                if len(self._joined) == 2:  # the weights' and the biases': they have moved
                    self._joined.clear()
                # The view keeps its memory: nothing else can come to be at these addresses.
                self._joined[places] = joined
        return joined


def longest_own_row(asked: str, package: str | None) -> int:
    """Return the longest row that takes our own attention kernels.

    Args:
        asked: ``model.attention_kernel``.
        package: what has taken the place of FlashAttention 2 behind the flash operator. Rows that
            do not fit into one block are left to it.
    """
    if asked != "auto":
        return 0
    return LONGEST_OWN_ROW if package is None else LONGEST_ROW


def fuse_layers(model: BertForPreTraining, longest_own: int = LONGEST_OWN_ROW) -> int:
    """Let the layers of a model run as :class:`FusedLayer` while training.

    Args:
        model: its parameters and their names stay the same.
        longest_own: longest row that takes our own attention kernels; 0 = the flash operator for
            every row.

    Returns:
        Longest row whose attention is not the flash operator's; 0 = none.
    """
    config = model.config
    head_width = config.hidden_size // config.num_attention_heads
    settings = Settings(
        heads=config.num_attention_heads,
        attention_dropout_p=config.attention_probs_dropout_prob,
        hidden_dropout_p=config.hidden_dropout_prob,
        eps=config.layer_norm_eps,
        approximate=GELU_FORMS[config.hidden_act],
        longest_own=longest_own if head_width in HEAD_WIDTHS else 0,
    )
    layers = list(model.encoder_layers())
    for number, layer in enumerate(layers):
        assert isinstance(layer, EncoderLayer)
        layer.forward = _Fused(layer, number, settings)  # type: ignore[method-assign]
    model.bert.encoder.draw_keys = functools.partial(draw_keys, DROPOUTS * len(layers))
    return settings.longest_own
