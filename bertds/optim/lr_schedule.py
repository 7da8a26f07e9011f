"""The learning rate of every step, as a pure function of the step (or of the clock).

All published recipes are one formula with different numbers. With t the number of steps before
this one (skipped steps are counted), W the warmup and T the length of the schedule::

    t <  W:  peak * (from + (1 - from) * ((t + 1) / W) ** warmup_power)
    t >= W:  peak * (floor + (1 - floor) * decay(t))

A trapezoid (Zhai et al. 2021, arXiv:2106.04560; "warm-up, stable, decay", arXiv:2404.06395) holds
the peak until the last ``decay_steps`` and decays over those.

Departures from the papers: Google's BERT (Devlin et al. 2018, section A.2; optimization.py) warms
up with t / W, so that its first update has learning rate 0 and changes nothing; here it is
(t + 1) / W. NVIDIA's DLE decays with t + 1 and so wastes its last update; here it is t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bertds.config.recipe import ScheduleConfig


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The schedule of one run.

    Attributes:
        peak: the peak learning rate, from the DeepSpeed JSON.
        config: the recipe's schedule section.
    """

    peak: float
    config: ScheduleConfig

    @property
    def horizon_steps(self) -> int:
        """Length T of the schedule in steps."""
        return self.config.horizon_steps or self.config.first_step + self.config.total_steps

    @property
    def warmup_steps(self) -> int:
        """Length W of the warmup in steps: as given, or warmup_ratio of the horizon, rounded."""
        if self.config.warmup_steps is not None:
            return self.config.warmup_steps
        return round((self.config.warmup_ratio or 0.0) * self.horizon_steps)

    def __call__(self, step: int, hours: float = 0.0) -> float:
        """Return the learning rate of one step.

        Args:
            step: steps of this run before this one, skipped ones included.
            hours: training time so far, over all restarts; used if the schedule follows the clock.
        """
        config = self.config
        if config.clock_hours is not None:
            # Izsak, Berchansky & Levy 2021 (arXiv:2104.07705), section 3.3: the schedule
            # follows the time budget, whatever the speed of the hardware.
            return self.peak * self._share(
                hours, (config.warmup_ratio or 0.0) * config.clock_hours, config.clock_hours, 0.0
            )
        return self.peak * self._share(
            float(config.first_step + step),
            float(self.warmup_steps),
            float(self.horizon_steps),
            1.0,
        )

    def _share(self, t: float, warmup: float, horizon: float, first: float) -> float:
        """Return the share of the peak at time t; ``first`` is added to t during warm-up."""
        config = self.config
        if t < warmup:
            progress = (t + first) / warmup
            return config.warmup_from + (1.0 - config.warmup_from) * progress**config.warmup_power
        # Where the decay begins: at step 0, after the warmup, or a given time before the end.
        start = warmup if config.decay_from == "warmup_end" else 0.0
        if config.decay == "constant":
            return 1.0
        if config.decay_steps is not None:
            start = horizon - config.decay_steps
        elif config.decay_ratio is not None:
            start = horizon * (1.0 - config.decay_ratio)
        if t < start:  # the plateau between warmup and decay
            return 1.0
        # The shape of the decay from 1 to 0.
        if config.decay == "exponential":
            decay = config.decay_factor ** ((t - start) / config.decay_every_steps)
        elif config.decay == "cosine":
            progress = min(1.0, (t - start) / max(horizon - start, 1e-12))
            decay = 0.5 * (1.0 + math.cos(math.pi * progress))
        elif config.decay == "sqrt":
            decay = 1.0 - math.sqrt(min(1.0, (t - start) / max(horizon - start, 1e-12)))
        else:
            decay = max(0.0, 1.0 - (t - start) / max(horizon - start, 1e-12)) ** config.power
        return config.floor + (1.0 - config.floor) * decay
