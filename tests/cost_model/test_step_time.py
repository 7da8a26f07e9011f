"""Bytes between ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bertds.cost_model.flops import parameter_count
from bertds.cost_model.step_time import bytes_sent
from tests.support.plan_settings import LARGE, shape_of


def test_bytes_sent_follow_the_ring() -> None:
    count = parameter_count(LARGE, 30522)
    shape = shape_of(LARGE, 8, vocab_size=30522, precision="bf16", world_size=4)
    vector = 2 * count * 3 / 4
    assert bytes_sent(shape, 16) == pytest.approx((vector, vector))
    assert bytes_sent(replace(shape, stage=2), 16) == pytest.approx((16 * vector, vector))
    assert bytes_sent(replace(shape, stage=3), 16) == pytest.approx((16 * vector, 32 * vector))
    assert bytes_sent(replace(shape, world_size=1), 16) == (0.0, 0.0)
