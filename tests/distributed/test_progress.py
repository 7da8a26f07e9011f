"""Which rank keeps the others waiting."""

from __future__ import annotations

import threading
import time

import pytest

from bertds.distributed import progress as module
from bertds.distributed.progress import LEARNT_STEPS, Progress, Sign, Standstill


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def learn(clock: Clock, seconds: float, least: float = 60.0) -> Progress:
    """A run whose steps take this long, after a first one that compiled for five minutes."""
    found = Progress(least)
    clock.now += 300.0
    found.step_done(1)
    for step in range(2, 2 + LEARNT_STEPS):
        clock.now += seconds
        found.step_done(step)
    return found


def test_the_limit_is_a_minute_or_five_step_times(clock: Clock) -> None:
    assert Progress(60.0).limit() is None
    assert learn(clock, 0.5).limit() == 60.0
    assert learn(clock, 30.0).limit() == pytest.approx(150.0)
    assert learn(clock, 30.0, least=0.0).limit() is None
    assert learn(clock, 30.0).limit(patient=True) == pytest.approx(1500.0)
    assert learn(clock, 30.0).limit("data") == pytest.approx(1500.0)


def test_saving_and_validation_are_not_part_of_a_step_and_have_their_own_limits(
    clock: Clock,
) -> None:
    found = learn(clock, 1.0)
    assert found.limit("save") is None
    found.enter("save")
    clock.now += 500.0
    found.enter("step")
    clock.now += 1.0
    found.step_done(99)
    assert found.step_seconds == pytest.approx(1.0)
    assert found.limit("save") == pytest.approx(2500.0)
    assert found.limit("validation") is None


def sign(count: int, *, waiting: bool = False, activity: str = "step") -> Sign:
    return Sign(
        beat=1,
        count=count,
        activity=activity,
        step=6,
        waiting=waiting,
        patient=False,
        place="there",
    )


def test_the_rank_with_the_least_progress_is_named(clock: Clock) -> None:
    watch = Standstill(learn(clock, 0.5), 3)
    watch.note(0, sign(20, waiting=True), 0.0)
    watch.note(2, sign(20, waiting=True), 0.0)
    assert watch.find(1000.0) is None  # one has not been heard of
    watch.note(1, sign(19), 1.0)
    assert watch.find(61.0) is None
    found = watch.find(62.0)
    assert found is not None and found[0] == [1]
    assert found[1] == (
        "no progress for 61 s in step 7 (a step usually takes 0.5 s); its main thread is in there"
    )
    watch.note(1, sign(20), 63.0)
    assert watch.find(64.0) is None


def test_at_equal_progress_the_rank_that_waits_for_no_other_is_named(clock: Clock) -> None:
    watch = Standstill(learn(clock, 0.5), 3)
    for rank in range(3):
        watch.note(rank, sign(20, waiting=rank != 2), 0.0)
    found = watch.find(61.0)
    assert found is not None and found[0] == [2]
    for rank in range(3):
        watch.note(rank, sign(20, waiting=True), 0.0)
    found = watch.find(61.0)
    assert found is not None and found[0] == [0, 1, 2]


@pytest.mark.parametrize(("activity", "seconds"), [("data", 599.0), ("start", 1e9), ("save", 1e9)])
def test_what_may_take_longer_is_waited_for(clock: Clock, activity: str, seconds: float) -> None:
    watch = Standstill(learn(clock, 0.5), 2)
    watch.note(0, sign(20, waiting=True), 0.0)
    watch.note(1, sign(19, activity=activity), 0.0)
    assert watch.find(seconds) is None


def test_a_sign_says_where_the_main_thread_is() -> None:
    found: list[Sign] = []
    own = Progress(60.0)
    own.enter("data")
    teller = threading.Timer(0.05, lambda: found.append(own.sign(3)))
    teller.start()
    _sleep_here()
    teller.join()
    assert Sign.from_text(found[0].to_text()) == found[0]
    assert found[0].place.startswith("_sleep_here (test_progress.py:")
    assert (found[0].beat, found[0].count, found[0].activity) == (3, 1, "data")
    assert not found[0].waiting and not found[0].patient


def _sleep_here() -> None:
    time.sleep(0.3)
