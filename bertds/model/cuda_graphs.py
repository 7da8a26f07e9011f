"""CUDA graphs: the encoder's forward and backward replayed as recorded, in one launch.

A graph fits one shape, so it is of use where ``data.pack_tokens`` keeps shapes the same. A shape
is recorded when it is first met; the few micro-batches of a rare shape run as usual.

    encoder(hidden, layout) --shape known?--> replay
                                  '--no----> record (up to MAX_SHAPES), or run as usual

Each replay writes the parameters' gradients to the same memory. Autograd would take that very
memory for ``parameter.grad``, and the next micro-batch would then overwrite the sum and be added to
itself; so the gradients are copied on their way.

This needs a CUDA device. It was written without one at hand: tests on a CPU cover which shape goes
where, with a recorder that records nothing; the recording itself has not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bertds.model.encoder import Encoder
from bertds.model.row_layout import RowLayout

MAX_SHAPES = 4
"""Each recorded shape keeps its activations' memory for good."""

Recorder = Callable[[nn.Module, tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]


class _OneShape(nn.Module):
    """The encoder as a function of tensors alone, which is what can be recorded."""

    def __init__(self, encoder: Encoder, max_seqlen: int, kernel: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.max_seqlen = max_seqlen
        self.kernel = kernel

    def forward(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
        layout = RowLayout(cu_seqlens=cu_seqlens, max_seqlen=self.max_seqlen, kernel=self.kernel)
        return Encoder.forward(self.encoder, hidden_TH, layout)


def record_on_cuda(
    module: nn.Module, sample: tuple[Tensor, Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Record forward and backward of a module for tensors shaped as ``sample``."""
    graphed: Any = torch.cuda.make_graphed_callables(module, sample)
    return graphed  # type: ignore[no-any-return]


class GraphedEncoder:
    """Stands in for an encoder's ``forward`` while training.

    Args:
        encoder: whose ``forward`` is taken over.
        record: makes a callable of a module and sample arguments.
    """

    def __init__(self, encoder: Encoder, record: Recorder = record_on_cuda) -> None:
        self._encoder = encoder
        self._record = record
        self._recorded: dict[tuple[Any, ...], Callable[[Tensor, Tensor], Tensor]] = {}

    @property
    def shapes(self) -> int:
        """How many shapes are recorded."""
        return len(self._recorded)

    def __call__(self, hidden_TH: Tensor, layout: RowLayout) -> Tensor:
        """Return the last layer's output, [T, H]."""
        encoder = self._encoder
        # Groups of equal lengths are read on the host (CPU): not a function of tensors alone.
        if not encoder.training or not torch.is_grad_enabled() or layout.groups is not None:
            return Encoder.forward(encoder, hidden_TH, layout)
        key = (hidden_TH.shape, hidden_TH.dtype, layout.cu_seqlens.shape, layout.max_seqlen)
        if key not in self._recorded:
            if len(self._recorded) >= MAX_SHAPES:
                return Encoder.forward(encoder, hidden_TH, layout)
            sample = (
                torch.zeros_like(hidden_TH).requires_grad_(),
                layout.cu_seqlens.clone(),
            )
            if not self._recorded:
                for parameter in encoder.parameters():
                    parameter.register_hook(torch.clone)
            module = _OneShape(encoder, layout.max_seqlen, layout.kernel)
            self._recorded[key] = self._record(module, sample)
        return self._recorded[key](hidden_TH, layout.cu_seqlens)


def use_graphs(encoder: Encoder, record: Recorder = record_on_cuda) -> GraphedEncoder:
    """Let an encoder replay recorded graphs; returns what now stands in for its ``forward``."""
    graphed = GraphedEncoder(encoder, record)
    encoder.forward = graphed  # type: ignore[method-assign]
    return graphed
