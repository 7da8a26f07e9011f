"""Which parameters are decayed: all except biases and LayerNorm weights, as in all BERT recipes."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def is_decayed(name: str) -> bool:
    """Return whether weight decay (and, in NVIDIA's LAMB, adaptation) applies to a parameter.

    Args:
        name: the parameter's name in the model, as transformers spells it.
    """
    # Other models name their LayerNorms norm, final_norm (ModernBERT), sa_layer_norm (DistilBERT).
    return not (name.endswith(("bias", "norm.weight")) or "LayerNorm" in name)


def split_parameters(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the trainable parameters that are decayed, and those that are not.

    A tied parameter appears once, because ``named_parameters`` of a module yields it once.
    """
    decayed: list[torch.nn.Parameter] = []
    not_decayed: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (decayed if is_decayed(name) else not_decayed).append(parameter)
    return decayed, not_decayed
