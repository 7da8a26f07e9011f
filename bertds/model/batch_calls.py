"""``model(batch)``: a micro batch of the loader in the place of the arguments that it holds."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasModelInputs(Protocol):
    """A micro batch, as :class:`bertds.data.batches.MicroBatch` is."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the model's ``forward``, by name."""


class TakesBatches(nn.Module):
    """A model that can be called with a micro batch alone."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run ``forward``, with the fields of a micro batch where one is given."""
        if len(arguments) == 1 and isinstance(arguments[0], HasModelInputs):
            return super().__call__(**arguments[0].model_inputs(), **named)
        return super().__call__(*arguments, **named)
