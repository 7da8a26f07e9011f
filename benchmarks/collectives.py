"""Counts the communication between ranks: calls, payload, and bytes that a ring would send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

# What of a call's arguments is the whole vector, and how often a ring sends (W - 1) / W of it.
CALLS = {
    "all_reduce": (0, 2.0),
    "reduce": (0, 1.0),
    "broadcast": (0, 1.0),
    "all_gather_into_tensor": (0, 1.0),
    "reduce_scatter_tensor": (1, 1.0),
    "all_gather": (0, 1.0),
}


class Count:
    """Collective operations made by this rank."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again from zero."""
        self.calls: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self.sent = 0.0

    def note(self, name: str, vector: Any, factor: float) -> None:
        """Add one call on a tensor, or a list of them."""
        tensors = vector if isinstance(vector, list) else [vector]
        size = sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))
        ranks = dist.get_world_size()
        self.calls[name] += 1
        self.payload[name] += size
        self.dtypes[str(tensors[0].dtype).removeprefix("torch.")] += size
        self.sent += factor * size * (ranks - 1) / ranks


@contextmanager
def counting() -> Iterator[Count]:
    """Count the collectives of ``torch.distributed`` made within, DeepSpeed's among them."""
    count, inside = Count(), [False]
    originals = {name: getattr(dist, name) for name in CALLS}

    def wrap(name: str) -> Any:
        place, factor = CALLS[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if not inside[0]:
                vector = arguments[place] if len(arguments) > place else _first(options)
                count.note(name, vector, factor)
            outer, inside[0] = inside[0], True  # one may be made of another
            try:
                return originals[name](*arguments, **options)
            finally:
                inside[0] = outer

        return call

    for name in CALLS:
        setattr(dist, name, wrap(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _first(options: dict[str, Any]) -> Any:
    for name in ("input", "tensor", "output_tensor", "output", "tensor_list"):
        if name in options:
            return options[name]
    raise KeyError(f"no tensor among {sorted(options)}")
