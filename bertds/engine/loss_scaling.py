"""The loss scale of fp16, which DeepSpeed's wrappers maintain."""

from __future__ import annotations

from collections.abc import Mapping

from bertds.engine.zero_layout import DeepSpeedObject

_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScaling:
    """Reads and sets the loss scaler. Without fp16 there is none.

    Args:
        engine: the DeepSpeed engine.
        precision: of the DeepSpeed JSON.
    """

    def __init__(self, engine: DeepSpeedObject, precision: str) -> None:
        self._scaler = None
        if precision == "fp16":
            self._scaler = getattr(engine.optimizer, "loss_scaler", None)

    def numbers(self) -> dict[str, float]:
        """Return the scaler's numbers, for a checkpoint; {} without fp16."""
        if self._scaler is None:
            return {}
        return {name: vars(self._scaler)[name] for name in _NUMBERS if name in vars(self._scaler)}

    def set_numbers(self, numbers: Mapping[str, float]) -> None:
        """Restore what ``numbers`` returned; other keys are ignored."""
        if self._scaler is not None:
            for name in _NUMBERS:
                if name in numbers and name in vars(self._scaler):
                    setattr(self._scaler, name, numbers[name])

    def current(self) -> float | None:
        """Return the current scale; None without fp16."""
        return None if self._scaler is None else float(self._scaler.cur_scale)

    def is_searching(self) -> bool:
        """Return whether a skipped step may be an overflow that a lower scale avoids."""
        scaler = self._scaler
        return bool(scaler is not None and scaler.dynamic and scaler.cur_scale > scaler.min_scale)
