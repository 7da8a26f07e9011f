"""What changes while a run trains, as pure functions of the step: batch size and mask rate.

None of it is state: a continued run, on any number of processes, takes the same samples with the
same masks in the same steps as an unbroken one.
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

    ``plan`` is the full batch. Of n = full / first sizes all but the last get an equal part of
    ``steps``; ModernBERT grows from 768 to 4,608 rows in this way (arXiv:2412.13663, section
    2.2.1). Micro batch and world size stay, so only the accumulation changes.

    Attributes:
        plan: the full batch, as it is cut here.
        first: rows of the first step.
        steps: steps until the full batch.
    """

    plan: BatchPlan
    first: int
    steps: int

    @classmethod
    def of(cls, schedule: ScheduleConfig, plan: BatchPlan) -> BatchRamp:
        """Return the ramp of a recipe; without one, the full batch from the first step on.

        Raises:
            ConfigError: the first batch does not divide the full one, or cannot be cut into micro
                batches for these processes.
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
        # Where nothing grows there is no ramp, so that `samples` need not know that case.
        return cls(plan, first, schedule.batch_ramp_steps if first < full else 0)

    @property
    def sizes(self) -> int:
        """How many sizes there are."""
        return self.plan.global_batch_size // self.first

    def at(self, step: int) -> BatchPlan:
        """Return the batch of a step, counted from 0."""
        if step >= self.steps:
            return self.plan
        multiple = 1 + step * (self.sizes - 1) // self.steps
        return replace(self.plan, global_batch_size=self.first * multiple)

    def samples(self, steps: int) -> int:
        """Return the rows of the first ``steps`` steps."""
        ramp = min(steps, self.steps)
        rows = 0
        for multiple in range(1, self.sizes):
            # Steps whose multiple is this one: the first step of the next one ends them.
            begin = -(-(multiple - 1) * self.steps // (self.sizes - 1))
            end = -(-multiple * self.steps // (self.sizes - 1))
            rows += self.first * multiple * max(0, min(end, ramp) - min(begin, ramp))
        return rows + (steps - ramp) * self.plan.global_batch_size


@dataclass(frozen=True, slots=True)
class MaskRate:
    """The share of masked tokens of each step, from ``first`` to ``last`` on a straight line.

    Attributes:
        first: of step 0.
        last: of step ``steps`` and all after it.
        steps: length of the line.
    """

    first: float
    last: float
    steps: int

    @classmethod
    def of(cls, data: DataConfig, total_steps: int) -> MaskRate | None:
        """Return the rate of a recipe; None where it does not change."""
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
    """Return the rate that held-out rows are masked with in the whole run: the last one.

    Losses at different rates cannot be compared.
    """
    return data.masked_lm_prob if data.masked_lm_prob_end is None else data.masked_lm_prob_end


def mean_mask_rate(data: DataConfig, total_steps: int) -> float:
    """Return the mean rate over a run, for counts of operations."""
    rate = MaskRate.of(data, total_steps)
    if rate is None:
        return data.masked_lm_prob
    line = min(rate.steps, total_steps)
    share = line / total_steps
    return share * (rate.first + rate.at(line)) / 2 + (1 - share) * rate.last
