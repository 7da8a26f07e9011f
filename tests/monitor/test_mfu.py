"""FLOPS and MFU of a run."""

from __future__ import annotations

import pytest

from bertds.cost_model.hardware import peak_of
from bertds.monitor.mfu import Meter
from tests.support.plan_settings import LARGE


def test_meter_reads_flops_and_mfu() -> None:
    meter = Meter(LARGE, 30528, 8, 312e12)
    # 580 rows per second each
    values = meter.read(tokens=128 * 4640, masked=19 * 4640, samples=4640, seconds=1.0)
    assert values["tflops"] == pytest.approx(580 * 240.6e9 / 1e12, rel=0.01)
    assert values["mfu"] == pytest.approx(0.447, abs=0.002)  # DLE's A100, 45%
    assert meter.read(0, 0, 0, 1.0) == {}
    assert peak_of("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_of("Some other card", "bf16") is None
