"""``torch.compile`` for the layers: one graph per direction, shared by all layers and batches.

On a GPU a whole layer is compiled, including attention: the flash operator is an ordinary operator.
The numbers of tokens and rows and the longest row are dynamic, and parameters are inputs, so no
batch shape causes a recompilation. The concatenated parameters of queries, keys and values are an
input of the graph, so that they can be concatenated without a copy outside of it.

On a CPU attention is one product per row length, and their number changes with every batch. So two
regions of each layer are compiled: the end of the attention half (linear, dropout, residual sum,
LayerNorm) and the whole feed-forward half. The modern encoder's regions are everything before
attention (LayerNorm, the product, rotation) and everything after it. A whole layer of it has one
graph per kind of layer: the first one, local ones, global ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bertds.model.attention import Joined
from bertds.model.build import PreTrainingModel
from bertds.model.embeddings import Rotation
from bertds.model.encoder import EncoderLayer
from bertds.model.modern import ModernBertForMaskedLM, ModernLayer
from bertds.model.row_layout import RowLayout
from bertds.system.logs import log

GRAPHS = 32
"""Maximum number of graphs; there are never this many."""


def missing_compiler(device_type: str) -> str:
    """Return what ``torch.compile`` lacks on this machine, for a message; "" = nothing."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is not installed, or the GPU is too old for it"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "no C++ compiler found (install g++, or set CXX)"
    return ""


def compile_layers(model: PreTrainingModel, device_type: str, *, backend: str = "inductor") -> bool:
    """Compile the layers of a model in place; the first passes then take longer.

    Without a compiler this logs one warning and leaves the model unchanged: the results are the
    same, only slower.

    Args:
        model: its parameters and their names do not change.
        device_type: of the device that it will run on.
        backend: of ``torch.compile``; backends other than inductor need no compiler.

    Returns:
        Whether the layers are compiled.
    """
    lacking = missing_compiler(device_type) if backend == "inductor" else ""
    if lacking:
        log.warning("run.compile: %s; the layers run uncompiled", lacking)
        return False
    # All layers share one function. Each kind of layer, training and evaluation, and a batch of one
    # row (padded kernel) need a graph each. Beyond its limit of 8, torch would raise an error.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True, "backend": backend}
    modern = isinstance(model, ModernBertForMaskedLM)
    layers: Any = model.encoder_layers()
    # On a CPU grouped attention cannot be in a graph with dynamic shapes: compile around it.
    if device_type == "cpu" and model.config.attention_kernel != "padded":
        for layer in layers:
            _compile_regions(layer, options)
        return True
    compute = torch.compile(_compute, **options)
    for layer in layers:
        layer.forward = functools.partial(_modern_forward if modern else _forward, compute, layer)
    return True


def _compile_regions(layer: Any, options: dict[str, Any]) -> None:
    if isinstance(layer, ModernLayer):
        layer.project = torch.compile(layer.project, **options)  # type: ignore[method-assign]
    else:
        ends = layer.attention.output
        ends.forward = torch.compile(ends.forward, **options)
    layer.feed_forward = torch.compile(layer.feed_forward, **options)


def _compute(
    layer: Any,
    hidden_TH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    kernel: str,
    extra: Joined | Rotation | None,
) -> Tensor:
    """Compute a layer as a function of tensors and plain values, so that it can be compiled."""
    layout = RowLayout(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, kernel=kernel)
    output_TH: Tensor = layer.compute(hidden_TH, layout, extra)
    return output_TH


def _forward(
    compute: Callable[..., Tensor],
    layer: EncoderLayer,
    hidden_TH: Tensor,
    layout: RowLayout,
    read: Tensor | None = None,
) -> Tensor:
    """Replace the ``forward`` of BERT's layers."""
    joined = layer.attention.self.joined()
    for parameter in joined or ():
        torch._dynamo.mark_static(parameter)  # otherwise its sizes would be symbolic
    output_TH: Tensor = compute(
        layer, hidden_TH, layout.cu_seqlens, layout.max_seqlen, layout.kernel, joined
    )
    return output_TH if read is None else output_TH.index_select(0, read)


def _modern_forward(
    compute: Callable[..., Tensor],
    layer: ModernLayer,
    hidden_TH: Tensor,
    layout: RowLayout,
    turn: Rotation,
) -> Tensor:
    """Replace the ``forward`` of the modern encoder's layers."""
    output_TH: Tensor = compute(
        layer, hidden_TH, layout.cu_seqlens, layout.max_seqlen, layout.kernel, turn
    )
    return output_TH
