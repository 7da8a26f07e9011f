"""The loss scale of fp16, which DeepSpeed's wrappers maintain."""

from __future__ import annotations

from collections.abc import Mapping

from bertds.engine.zero_layout import DeepSpeedObject

_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScaling:
    """Reads and sets the loss scaler, and adjusts it after each step. Without fp16 there is none.

    DeepSpeed adjusts the scale inside its step, before it divides the gradients by it. In a step
    that doubles the scale the optimizer would then get half the gradient, and stage 3 would report
    half the norm. Here the wrapper only notes whether the step overflowed.

    Args:
        engine: the DeepSpeed engine.
        precision: of the DeepSpeed JSON.
    """

    def __init__(self, engine: DeepSpeedObject, precision: str) -> None:
        self._scaler = None
        self._overflows: list[bool] = []
        self._tried = 0.0
        if precision == "fp16":
            self._scaler = engine.optimizer.loss_scaler
            self._tried = self._scaler.cur_scale
            engine.optimizer._update_scale = self._overflows.append
            # At the lowest scale DeepSpeed would raise an exception; the guard counts such steps.
            self._scaler.raise_error_at_min_scale = False

    def adjust(self) -> None:
        """Adjust the scale to the step just made: an overflow lowers it, a good step may raise it.

        With ``fp16.hysteresis`` some overflows are tolerated first.
        """
        if self._scaler is not None:
            self._tried = self._scaler.cur_scale
            for overflow in self._overflows:
                self._scaler.update_scale(overflow)
            self._overflows.clear()

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
        """Return whether a lower scale may avoid the overflow of the last step."""
        scaler = self._scaler
        return bool(scaler is not None and scaler.dynamic and self._tried > scaler.min_scale)
