"""Time of a step by part of the model, measured by hooks on the modules.

The forward time of a part is from its pre-forward hook to its forward hook. The backward time is
from the arrival of its output's gradient to that of its input's. On a GPU the hooks wait for the
device, so the parts are timed in separate steps and not in those whose speed is reported.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Names of modules, alike in ours and in transformers', to the part that they belong to.
PARTS = {
    "embeddings": "embeddings",
    "attention": "attention",
    "intermediate": "MLP",
    "output": "MLP",
    "pooler": "heads",
    "cls": "heads",
    "predictions": "heads",
}


class PartTimer:
    """Adds up seconds by part and direction over the steps made within ``watching``."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._began: dict[Any, float] = {}

    def now(self) -> float:
        """Return the time at which everything asked of the device is done."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count a block towards a part."""
        began = self.now()
        yield
        self.seconds[part] += self.now() - began

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Time the parts of a model's forward and backward passes."""
        handles = []
        for module, part in parts_of(model):
            handles += [
                module.register_forward_pre_hook(self._start(module, part)),
                module.register_forward_hook(self._stop(module, part, "forward")),
            ]
            if part == "embeddings":  # ids have no gradient: its backward counts as "other"
                continue
            handles += [
                module.register_full_backward_pre_hook(self._start(module, part)),
                module.register_full_backward_hook(self._stop(module, part, "backward")),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, module: nn.Module, part: str) -> Any:
        def hook(*_: Any) -> None:
            self._began[module, part] = self.now()

        return hook

    def _stop(self, module: nn.Module, part: str, direction: str) -> Any:
        def hook(*_: Any) -> None:
            began = self._began.pop((module, part), None)
            if began is not None:
                self.seconds[f"{part} {direction}"] += self.now() - began

        return hook


def parts_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules to time, none inside another."""
    found: list[tuple[nn.Module, str]] = []

    def walk(module: nn.Module) -> None:
        for name, child in module.named_children():
            if name == "cls" and hasattr(child, "predictions"):
                found.append((child.predictions, "heads"))
            elif name in PARTS:
                found.append((child, PARTS[name]))
            else:
                walk(child)

    walk(model)
    return found


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
