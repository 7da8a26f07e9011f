"""Time on the device."""

from __future__ import annotations

import time

import pytest
import torch

from bertds.distributed.device_timer import KEPT, DeviceClock


def test_device_clock_waits_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the GPU has not finished when a line is due counts in the next one."""
    done = [False]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            pass

        def query(self) -> bool:
            return done[0]

        def synchronize(self) -> None:
            done[0] = True

        def elapsed_time(self, last: Event) -> float:
            assert done[0], "it would wait"
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = DeviceClock(torch.device("cuda"))
    for _ in range(2):
        with clock.timed():
            pass
    assert clock.take() == 0.0
    done[0] = True
    assert clock.take() == pytest.approx(0.5)
    assert clock.take() == 0.0
    done[0] = False
    with clock.timed():
        pass
    lap = clock.cut()  # waits for nothing
    assert not done[0] and clock.cut().seconds() == 0.0
    assert lap.seconds() == pytest.approx(0.25)
    assert done[0] and clock.take() == 0.0
    for _ in range(3 * KEPT):  # nothing reads this clock, and yet it does not grow
        with clock.timed():
            pass
    assert len(clock._pending) <= KEPT
    assert clock.take() == pytest.approx(3 * KEPT * 0.25)
    ours = DeviceClock(torch.device("cpu"))
    with ours.timed():
        time.sleep(0.05)
    assert 0.05 <= ours.take() < 5.0
    assert ours.take() == ours.cut().seconds() == 0.0
    with ours.timed():
        time.sleep(0.05)
    assert 0.05 <= ours.cut().seconds() < 5.0
