"""Model FLOPs utilization of a run."""

from __future__ import annotations

from dataclasses import dataclass

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import forward_backward_flops


@dataclass(frozen=True, slots=True)
class Meter:
    """Turns the counts and seconds of a window into achieved operations per second and MFU.

    Attributes:
        model: the architecture.
        vocab_size: size of the vocabulary.
        devices: number of processes that share the work.
        peak: peak of one device in operations per second, or None.
    """

    model: ModelConfig
    vocab_size: int
    devices: int
    peak: float | None

    def read(self, tokens: int, masked: int, samples: int, seconds: float) -> dict[str, float]:
        """Return ``tflops`` (per device) and, if the peak is known, ``mfu``.

        Args:
            tokens: real tokens of the window's steps, on all devices.
            masked: masked tokens among them. Counted, because the rate may change in each step.
            samples: rows of these steps.
            seconds: duration of the window.
        """
        if samples <= 0 or seconds <= 0.0:
            return {}
        done = forward_backward_flops(self.model, self.vocab_size, tokens, masked, samples)
        rate = done / seconds / self.devices
        result = {"tflops": float(f"{rate / 1e12:.4g}")}
        if self.peak:
            result["mfu"] = round(rate / self.peak, 4)
        return result
