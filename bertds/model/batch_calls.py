"""``model(batch)``: lets a model take a micro batch instead of the arguments it contains."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasModelInputs(Protocol):
    """A micro batch, such as :class:`bertds.data.batches.MicroBatch`."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the model's ``forward``, by name."""


class TakesBatches(nn.Module):
    """A model that can be called with only a micro batch."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run ``forward``; a micro batch is replaced by its fields."""
        if len(arguments) == 1 and isinstance(arguments[0], HasModelInputs):
            return super().__call__(**arguments[0].model_inputs(), **named)
        return super().__call__(*arguments, **named)
