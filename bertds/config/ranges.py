"""The ranges of numbers: of every key of a recipe, and of the keys of a DeepSpeed JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass

SMALLEST = 2.0**-126
"""The smallest normal float32. GPUs may treat smaller numbers as 0."""
LARGEST = (2.0 - 2.0**-23) * 2.0**127
"""The largest float32; larger numbers become infinite."""
YEAR_HOURS = 24 * 365


@dataclass(frozen=True, slots=True)
class Range:
    """The allowed values of a number.

    Attributes:
        low: the lowest one. ``SMALLEST`` means any positive number that float32 can represent.
        high: the highest one.
        or_zero: whether 0 is allowed in addition; it then turns something off.
    """

    low: float = 0
    high: float = math.inf
    or_zero: bool = False

    def problem(self, value: float) -> str:
        """Return what is wrong with a value, such as "must be at least 1"; "" if nothing is."""
        if self.or_zero and value == 0:
            return ""
        if not value >= self.low:  # also true for NaN
            if self.low == SMALLEST and not value > 0:
                return "must be at least 0" if self.or_zero else "must be above 0"
            return f"must be {'0 or ' if self.or_zero else ''}at least {_text(self.low)}"
        return f"must be at most {_text(self.high)}" if value > self.high else ""

    def words(self) -> str:
        """Return the range in words, such as "0 to 1" or "1 or more"."""
        zero = "0, or " if self.or_zero else ""
        if self.low == SMALLEST:
            most = "" if self.high in (LARGEST, math.inf) else f", at most {_text(self.high)}"
            return ("0 or more" if self.or_zero else "above 0") + most
        if self.high in (LARGEST, math.inf):
            return f"{zero}{_text(self.low)} or more"
        return f"{zero}{_text(self.low)} to {_text(self.high)}"


def _text(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:.3g}"


_ONE_OR_MORE = Range(1)
_SHARE = Range(0, 1)
_POSITIVE_SHARE = Range(SMALLEST, 1)
_CLOCK = 100 * YEAR_HOURS
_TIMEOUT = YEAR_HOURS * 3600
_THETA = Range(1, LARGEST)
_GIB = 2**30
"""An exbibyte, in GiB."""

_RANGES = {
    "run.max_hours": Range(0, _CLOCK),
    "run.stop_margin_minutes": Range(0, YEAR_HOURS * 60),
    "run.memory_limit_gib": Range(SMALLEST, _GIB),
    "model.hidden_size": _ONE_OR_MORE,
    "model.num_hidden_layers": _ONE_OR_MORE,
    "model.num_attention_heads": _ONE_OR_MORE,
    "model.intermediate_size": _ONE_OR_MORE,
    "model.max_position_embeddings": _ONE_OR_MORE,
    "model.type_vocab_size": _ONE_OR_MORE,
    "model.hidden_dropout_prob": _SHARE,
    "model.attention_probs_dropout_prob": _SHARE,
    "model.global_attn_every_n_layers": _ONE_OR_MORE,
    "model.global_rope_theta": _THETA,
    "model.local_rope_theta": _THETA,
    # A standard deviation of 0 makes all weights equal, and they would stay equal.
    "model.initializer_range": _POSITIVE_SHARE,
    # LayerNorm divides by sqrt(variance + epsilon), and a constant row has a variance of 0.
    "model.layer_norm_eps": _POSITIVE_SHARE,
    "model.z_loss": _SHARE,
    "data.cache_gib": Range(SMALLEST, _GIB),
    "data.fetch_timeout_minutes": Range(0, YEAR_HOURS * 60),
    "data.max_predictions_per_sequence": _ONE_OR_MORE,
    "data.masked_lm_prob": _SHARE,
    "data.masked_lm_prob_end": _SHARE,
    "data.masked_lm_prob_steps": _ONE_OR_MORE,
    "data.short_seq_prob": _SHARE,
    "data.rare_token_power": _SHARE,
    "data.prefetch_steps": Range(1, 1000),  # all of them are in memory
    "data.pack_tokens": Range(0, 2**31 - 1),  # offsets of rows are int32
    "schedule.total_steps": _ONE_OR_MORE,
    "schedule.warmup_ratio": _SHARE,
    "schedule.warmup_from": _SHARE,
    "schedule.decay_ratio": _SHARE,
    "schedule.decay_factor": _POSITIVE_SHARE,
    "schedule.decay_every_steps": _ONE_OR_MORE,
    "schedule.floor": _SHARE,
    "schedule.batch_from": _ONE_OR_MORE,
    "schedule.horizon_steps": _ONE_OR_MORE,
    "schedule.clock_hours": Range(SMALLEST, _CLOCK),
    "guard.max_bad_steps": _ONE_OR_MORE,
    "guard.spike_window": _ONE_OR_MORE,
    # A process sends a heartbeat every 0.1 s or less often.
    "guard.peer_timeout_seconds": Range(1, _TIMEOUT, or_zero=True),
    "guard.progress_timeout_seconds": Range(0, _TIMEOUT),
    "guard.meeting_timeout_seconds": Range(1, _TIMEOUT),
    "log.every_steps": _ONE_OR_MORE,
}


def range_of(key: str) -> Range:
    """Return the range of a numeric key of a recipe; most may have any number from 0."""
    return _RANGES.get(key, Range())
