"""Settings that change during training, as pure functions of the step: batch size and mask rate.

None of it is state. A resumed run, on any number of processes, uses the same samples with the same
masks in the same steps as an uninterrupted one.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig, ScheduleConfig
from bertds.display.words import count
from bertds.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """The global batch of each step: from ``first`` to the JSON's, in multiples of ``first``.

    ``plan`` is the full batch. There are n = full / first sizes; all except the last get an equal
    share of ``steps``. ModernBERT grows from 768 to 4,608 rows in this way (arXiv:2412.13663,
    section 2.2.1). Micro batch and world size are constant, so only the accumulation changes.

    Attributes:
        plan: the full batch, divided for these processes.
        first: rows of the first step.
        steps: number of steps until the full batch.
    """

    plan: BatchPlan
    first: int
    steps: int

    @classmethod
    def of(cls, schedule: ScheduleConfig, plan: BatchPlan) -> BatchRamp:
        """Return the ramp of a recipe; without one, the full batch from the first step.

        Raises:
            ConfigError: the first batch does not divide the full one, or cannot be divided into
                micro batches for these processes.
        """
        first = schedule.batch_from
        if first is None:
            return cls(plan, plan.global_batch_size, 0)
        full = plan.global_batch_size
        per_forward = plan.micro_batch_size * plan.world_size
        if first > full or full % first:
            divisors = [rows for rows in range(1, full + 1) if full % rows == 0]
            near = divisors[max(0, bisect_right(divisors, first) - 1)]
            raise ConfigError(
                f"schedule.batch_from={first} must divide train_batch_size={full}, to which it "
                f"grows in equal increments; use {near}"
            )
        if first % per_forward:
            raise ConfigError(
                f"schedule.batch_from={first} is not a multiple of "
                f"train_micro_batch_size_per_gpu={plan.micro_batch_size} x "
                f"{count(plan.world_size, 'process', 'processes')}; raise it, or lower the micro "
                "batch size"
            )
        # If nothing grows, a ramp of 0 steps avoids a special case in `samples`.
        return cls(plan, first, schedule.batch_ramp_steps if first < full else 0)

    @property
    def sizes(self) -> int:
        """The number of different sizes."""
        return self.plan.global_batch_size // self.first

    def at(self, step: int) -> BatchPlan:
        """Return the batch of a step, counted from 0."""
        if step >= self.steps:
            return self.plan
        multiple = 1 + step * (self.sizes - 1) // self.steps
        return replace(self.plan, global_batch_size=self.first * multiple)

    def samples(self, steps: int) -> int:
        """Return the number of rows of the first ``steps`` steps."""
        ramp = min(steps, self.steps)
        rows = 0
        for multiple in range(1, self.sizes):
            # The steps with this multiple end where the next multiple begins.
            begin = -(-(multiple - 1) * self.steps // (self.sizes - 1))
            end = -(-multiple * self.steps // (self.sizes - 1))
            rows += self.first * multiple * max(0, min(end, ramp) - min(begin, ramp))
        return rows + (steps - ramp) * self.plan.global_batch_size


@dataclass(frozen=True, slots=True)
class MaskRate:
    """The fraction of masked tokens of each step, linear from ``first`` to ``last``.

    Attributes:
        first: at step 0.
        last: at step ``steps`` and after it.
        steps: length of the change.
    """

    first: float
    last: float
    steps: int

    @classmethod
    def of(cls, data: DataConfig, total_steps: int) -> MaskRate | None:
        """Return the rate of a recipe; None if it is constant."""
        if data.masked_lm_prob_end is None:
            return None
        steps = data.masked_lm_prob_steps or total_steps
        return cls(data.masked_lm_prob, data.masked_lm_prob_end, steps)

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        if step >= self.steps:
            return self.last
        return self.first + (self.last - self.first) * step / self.steps


def held_out_mask_rate(data: DataConfig) -> float:
    """Return the rate for held-out rows in the whole run: the last one.

    It is constant because losses at different rates cannot be compared.
    """
    return data.masked_lm_prob if data.masked_lm_prob_end is None else data.masked_lm_prob_end
