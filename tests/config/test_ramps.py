"""Batch sizes and mask rates as functions of the step, and rows that follow them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bertds.config.batch_plan import BatchPlan
from bertds.config.ramps import BatchRamp, MaskRate, held_out_mask_rate
from bertds.config.recipe import DataConfig, ScheduleConfig
from bertds.data.loader import BatchLoader, DataPosition, open_source, validation_batches
from bertds.errors import ConfigError

FULL = BatchPlan(global_batch_size=24, micro_batch_size=2, world_size=2)


def ramp(first: int | None, steps: int) -> BatchRamp:
    return BatchRamp.of(ScheduleConfig(batch_from=first, batch_ramp_steps=steps), FULL)


def sizes(one: BatchRamp, steps: int) -> list[int]:
    return [one.at(step).global_batch_size for step in range(steps)]


def test_sizes_worked_by_hand() -> None:
    assert sizes(ramp(None, 0), 3) == [24, 24, 24]
    assert sizes(ramp(8, 4), 6) == [8, 8, 16, 16, 24, 24]
    assert sizes(ramp(4, 10), 12) == [4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24]
    assert sizes(ramp(12, 3), 5) == [12, 12, 12, 24, 24]
    assert sizes(ramp(4, 2), 4) == [4, 12, 24, 24]  # fewer steps than sizes: some are left out
    assert ramp(4, 10).at(5).gradient_accumulation_steps == 3


@pytest.mark.parametrize(("first", "steps"), [(None, 0), (8, 4), (4, 10), (4, 2), (12, 7), (24, 3)])
def test_rows_are_summed_without_counting_steps(first: int | None, steps: int) -> None:
    one = ramp(first, steps)
    for total in (0, 1, 3, 9, 40):
        assert one.samples(total) == sum(sizes(one, total)), total


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (7, "schedule.batch_from=7 must divide train_batch_size=24, .* use 6"),
        (48, "schedule.batch_from=48 must divide"),
        (6, "schedule.batch_from=6 is not a multiple of .*=2 x 2 processes"),
    ],
)
def test_a_first_batch_that_does_not_fit(first: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ramp(first, 5)


def test_mask_rates_worked_by_hand() -> None:
    data = DataConfig(masked_lm_prob=0.3, masked_lm_prob_end=0.1)
    rate = MaskRate.of(data, 4)
    assert rate is not None
    assert [rate.at(step) for step in range(6)] == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.1, 0.1])
    assert MaskRate.of(DataConfig(), 4) is None
    assert held_out_mask_rate(data) == 0.1 and held_out_mask_rate(DataConfig()) == 0.15


@pytest.mark.parametrize("balance", ["rows", "tokens"])
def test_rows_are_masked_at_the_rate_of_their_step(tiny_data: Path, balance: str) -> None:
    config = DataConfig(
        path=str(tiny_data),
        sequence_length=32,
        max_predictions_per_sequence=16,
        masked_lm_prob=0.4,
        masked_lm_prob_end=0.1,
        balance=balance,
    )
    rate = MaskRate.of(config, 6)
    assert rate is not None
    plan = BatchPlan(global_batch_size=12, micro_batch_size=2, world_size=1)
    growing = BatchRamp.of(ScheduleConfig(batch_from=4, batch_ramp_steps=4), plan)
    source = open_source(config, 3)

    def take(start: DataPosition, first_step: int, count: int) -> list:
        options = {"ramp": growing, "mask_rate": rate, "first_step": first_step}
        with BatchLoader(source, config, plan, 0, start=start, seed=3, **options) as loader:
            return list(islice(loader, count))

    batches = take(DataPosition(), 0, 6)
    plain = DataConfig(path=str(tiny_data), sequence_length=32, max_predictions_per_sequence=16)
    seen = 0
    for step, batch in enumerate(batches):
        rows = 0
        for micro in batch.micro_batches:
            lengths = np.diff(micro.cu_seqlens.numpy())
            wanted = [max(1, round(int(length) * rate.at(step))) for length in lengths]
            assert micro.masked == sum(wanted)
            rows += micro.rows
        assert rows == growing.at(step).global_batch_size == batch.plan.global_batch_size
        seen += rows
    # The same samples in the same order as without a ramp: only the cuts and the masks differ.
    with BatchLoader(open_source(plain, 3), plain, plan, 0, seed=3) as loader:
        steady = np.concatenate([batch.samples for batch in islice(loader, 4)])
    mine = np.concatenate([batch.samples for batch in batches])
    assert {tuple(s) for s in mine} == {tuple(s) for s in steady[:seen]}
    # Continued after the third step, everything is as in the unbroken stream.
    for one, other in zip(take(batches[2].next, 3, 3), batches[3:], strict=True):
        assert one.next == other.next
        for left, right in zip(one.micro_batches, other.micro_batches, strict=True):
            assert left.input_ids.equal(right.input_ids)
            assert left.masked_lm_positions.equal(right.masked_lm_positions)


def test_held_out_rows_have_one_rate(tiny_data: Path) -> None:
    config = DataConfig(
        path=str(tiny_data),
        sequence_length=32,
        max_predictions_per_sequence=16,
        masked_lm_prob=0.4,
        masked_lm_prob_end=0.1,
    )
    source = open_source(config, 3, split="validation")
    rate = held_out_mask_rate(config)
    batches = list(validation_batches(source, 4, 0, 1, seed=3, mask_rate=rate))
    assert batches
    for batch in batches:
        lengths = np.diff(batch.cu_seqlens.numpy())
        assert batch.masked == sum(max(1, round(int(length) * 0.1)) for length in lengths)


def test_rows_that_are_already_masked_have_no_mask_rate(tiny_data: Path) -> None:
    config = DataConfig(path=str(tiny_data), sequence_length=32, max_predictions_per_sequence=5)
    source = open_source(config, 3)
    source.makes_masks = False
    plan = BatchPlan(global_batch_size=4, micro_batch_size=2, world_size=1)
    with pytest.raises(
        ConfigError, match=r"data.masked_lm_prob_end=0.1: the rows of .* are already masked"
    ):
        BatchLoader(source, config, plan, 0, seed=3, mask_rate=MaskRate(0.3, 0.1, 5))
