"""``torch.compile`` for the parts of a layer whose operations do not depend on how rows lie.

Two regions of each layer are compiled: the end of the attention half (linear, dropout, residual
sum, LayerNorm) and the whole feed-forward half. Everything element by element in them becomes one
loop. The number of tokens is dynamic from the start, and parameters are inputs, so one graph per
region and mode serves all layers and all batches; nothing is compiled again after the first ones.
Attention stays as it is: its products are a library's, and on a CPU their number changes with
every batch. The modern encoder's regions are all before attention (LayerNorm, the product,
rotation) and all after it.
"""

from __future__ import annotations

from typing import Any

import torch

from bertds.model.build import PreTrainingModel
from bertds.model.modern import ModernBertForMaskedLM
from bertds.system.logs import log


def missing_compiler(device_type: str) -> str:
    """Return what ``torch.compile`` lacks on this machine, in words; "" = nothing."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is not installed, or the GPU is too old for it"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "no C++ compiler is found (install g++, or set CXX)"
    return ""


def compile_layers(model: PreTrainingModel, device_type: str, *, backend: str = "inductor") -> bool:
    """Compile the layers of a model in place; the first passes then take a minute longer.

    Where there is no compiler, says so once and leaves the model as it is: the numbers are the
    same, only slower.

    Args:
        model: its parameters and their names stay the same.
        device_type: where it will run.
        backend: of ``torch.compile``; others than inductor need no compiler.

    Returns:
        Whether the layers are compiled.
    """
    lacking = missing_compiler(device_type) if backend == "inductor" else ""
    if lacking:
        log.warning("run.compile=true: %s; the layers run uncompiled", lacking)
        return False
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True, "backend": backend}
    if isinstance(model, ModernBertForMaskedLM):
        blocks: Any = model.model.layers
        for block in blocks:
            block.project = torch.compile(block.project, **options)
            block.feed_forward = torch.compile(block.feed_forward, **options)
        return True
    layers: Any = model.bert.encoder.layer
    for layer in layers:
        ends = layer.attention.output
        ends.forward = torch.compile(ends.forward, **options)
        layer.feed_forward = torch.compile(layer.feed_forward, **options)
    return True
