"""CUDA graphs: the encoder's forward and backward pass, recorded and replayed in one launch each.

A graph fits one shape, so it is useful if ``data.pack_tokens`` keeps shapes constant. A shape is
recorded when it first occurs. After MAX_SHAPES shapes, further ones run as usual.

    encoder(hidden, layout) --shape known?--> replay
                                  '--no----> record (up to MAX_SHAPES), or run as usual

The recorded function takes the hidden states, the rows' starts and stand-ins of the parameters:
other leaf tensors over the same memory. The stand-ins keep two things apart:

- Autograd creates a leaf's accumulation node on the current stream, and keeps it while any graph
  refers to it. Recording uses its own streams, and a recorded graph is never freed. With the
  parameters themselves in it, each gradient would cross streams from then on (torch warns about
  it), and an earlier node could pull the default stream into the recording (an error).
- Each replay writes gradients to the same memory. Autograd would use this memory as
  ``parameter.grad``. The next micro batch would then overwrite the sum and be added to itself. So
  the gradients are copied between the stand-ins and the parameters, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx as Context
from torch.autograd.function import once_differentiable

from bertds.model.encoder import Encoder
from bertds.model.row_layout import RowLayout

MAX_SHAPES = 4
"""The maximum number of recorded shapes: each keeps the memory of its activations for good."""

Recordable = Callable[..., Tensor]
"""Takes hidden states [T, H], the rows' starts [B + 1] and the parameters' stand-ins."""
Recorder = Callable[[Recordable, tuple[Tensor, ...]], Recordable]


class _OwnGradients(torch.autograd.Function):
    """Passes parameters through unchanged, and copies their gradients to separate memory."""

    @staticmethod
    def forward(ctx: Context, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(parameter.detach() for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, ...]:
        copies: tuple[Tensor, ...] = torch._foreach_mul(gradients, 1.0)  # a copy, in few kernels
        return tuple(copies)


class _OneShape(nn.Module):
    """The encoder for rows with a constant maximum length and a constant kernel."""

    def __init__(self, encoder: Encoder, max_seqlen: int, kernel: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.max_seqlen = max_seqlen
        self.kernel = kernel

    def forward(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
        layout = RowLayout(cu_seqlens=cu_seqlens, max_seqlen=self.max_seqlen, kernel=self.kernel)
        return Encoder.forward(self.encoder, hidden_TH, layout)

    def with_parameters(self, hidden_TH: Tensor, cu_seqlens: Tensor, *stand_ins: Tensor) -> Tensor:
        """Run ``forward`` with other tensors in the parameters' places."""
        names = (name for name, _ in self.named_parameters())
        replaced = dict(zip(names, stand_ins, strict=True))
        output_TH: Tensor = torch.func.functional_call(self, replaced, (hidden_TH, cu_seqlens))
        return output_TH


def record_on_cuda(function: Recordable, sample: tuple[Tensor, ...]) -> Recordable:
    """Record forward and backward of a function for tensors shaped as ``sample``."""
    # make_graphed_callables runs the function on one stream and records it on another, while the
    # first graph is alive. Nothing is accumulated, so torch's warning does not apply.
    warned = torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch
    warned(False)
    try:
        graphed: Any = torch.cuda.make_graphed_callables(function, sample)
    finally:
        warned(True)
    return graphed  # type: ignore[no-any-return]


class GraphedEncoder:
    """Replaces an encoder's ``forward`` during training.

    Args:
        encoder: its ``forward`` is replaced.
        record: turns a function and sample arguments into a callable.
    """

    def __init__(self, encoder: Encoder, record: Recorder = record_on_cuda) -> None:
        self._encoder = encoder
        self._record = record
        self._recorded: dict[tuple[Any, ...], Recordable] = {}

    @property
    def shapes(self) -> int:
        """Number of recorded shapes."""
        return len(self._recorded)

    def __call__(self, hidden_TH: Tensor, layout: RowLayout, read: Tensor | None = None) -> Tensor:
        """Return the last layer's output: [T, H], or [R, H] for the tokens in ``read``."""
        encoder = self._encoder
        # Groups of equal lengths (on a CPU) are read on the host, so they cannot be recorded.
        if not encoder.training or not torch.is_grad_enabled() or layout.groups is not None:
            return Encoder.forward(encoder, hidden_TH, layout, read)
        key = (
            hidden_TH.shape,
            hidden_TH.dtype,
            layout.cu_seqlens.shape,
            layout.max_seqlen,
            layout.kernel,
        )
        if key not in self._recorded:
            if len(self._recorded) >= MAX_SHAPES:
                return Encoder.forward(encoder, hidden_TH, layout, read)
            self._recorded[key] = self._record_shape(hidden_TH, layout)
        # Every call passes the parameters: if one has moved in memory, the replay copies its
        # values to where they were during recording.
        parameters = _OwnGradients.apply(*encoder.parameters())
        output_TH = self._recorded[key](hidden_TH, layout.cu_seqlens, *parameters)
        # The number of read tokens differs per batch, so this is not part of the recording.
        return output_TH if read is None else output_TH.index_select(0, read)

    def _record_shape(self, hidden_TH: Tensor, layout: RowLayout) -> Recordable:
        encoder = self._encoder
        sample = (
            torch.zeros_like(hidden_TH).requires_grad_(),
            layout.cu_seqlens.clone(),
            *(p.detach().requires_grad_(p.requires_grad) for p in encoder.parameters()),
        )
        module = _OneShape(encoder, layout.max_seqlen, layout.kernel)
        return self._record(module.with_parameters, sample)


def use_graphs(encoder: Encoder, record: Recorder = record_on_cuda) -> GraphedEncoder:
    """Make an encoder replay recorded graphs; returns the object that replaces ``forward``."""
    graphed = GraphedEncoder(encoder, record)
    encoder.forward = graphed  # type: ignore[method-assign]
    return graphed
