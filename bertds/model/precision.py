"""The precision of a product: that of its inputs, or of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a product of tensors of ``dtype``, with autocast taken into account."""
    # The meta device, on which tests count operators, has no autocast.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products keep the dtype of their inputs."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
