"""Model FLOPs utilization of a run."""

from __future__ import annotations

from dataclasses import dataclass

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import forward_backward_flops, masked_per_row


@dataclass(frozen=True, slots=True)
class Meter:
    """Turns the tokens and seconds of a window into achieved operations per second and MFU.

    Attributes:
        model: the architecture.
        vocab_size: size of the vocabulary.
        masked_lm_prob: share of masked tokens.
        most_masked: maximum number of masked tokens in a row.
        devices: number of processes that share the work.
        peak: peak of one device in operations per second, or None.
    """

    model: ModelConfig
    vocab_size: int
    masked_lm_prob: float
    most_masked: int
    devices: int
    peak: float | None

    def read(self, tokens: int, samples: int, seconds: float) -> dict[str, float]:
        """Return ``tflops`` (per device) and, if the peak is known, ``mfu``."""
        if samples <= 0 or seconds <= 0.0:
            return {}
        masked = samples * masked_per_row(tokens / samples, self.masked_lm_prob, self.most_masked)
        done = forward_backward_flops(self.model, self.vocab_size, tokens, masked, samples)
        rate = done / seconds / self.devices
        result = {"tflops": float(f"{rate / 1e12:.4g}")}
        if self.peak:
            result["mfu"] = round(rate / self.peak, 4)
        return result
