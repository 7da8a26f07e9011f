"""Ranks that wait for a store continue, stop or fail together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from bertds.errors import DataError, StoreError
from bertds.training import store_waits
from bertds.training.store_waits import together

T = TypeVar("T")
WORLD = 2


class ThreadRank:
    """One of several ranks that are threads of this process."""

    device = torch.device("cpu")
    world_size = WORLD

    def __init__(self, rank: int, barrier: threading.Barrier, values: list[object]) -> None:
        self.rank, self._barrier, self._values = rank, barrier, values

    def global_sums(self, values: list[float]) -> torch.Tensor:
        raise NotImplementedError

    def gather_objects(self, value: T) -> list[T]:
        self._values[self.rank] = value
        self._barrier.wait(20)
        found = list(self._values)
        self._barrier.wait(20)
        return found  # type: ignore[return-value]


def outcomes(
    works: list[Callable[[], object]], stops: list[Callable[[], str]] | None = None
) -> list[object]:
    """Do one piece of work per rank together; return each rank's result, or its error."""
    barrier, values = threading.Barrier(WORLD), [None] * WORLD
    found: list[object] = [None] * WORLD

    def run(rank: int) -> None:
        more = {} if stops is None else {"stop": stops[rank]}
        try:
            found[rank] = together(ThreadRank(rank, barrier, values), works[rank], **more)
        except (StoreError, DataError) as error:
            found[rank] = error
            if isinstance(error, DataError):
                barrier.abort()  # the process would end, and the others would notice
        except threading.BrokenBarrierError:
            found[rank] = "lost its peer"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_waits, "ROUND_SECONDS", 0.01)


def test_a_fast_rank_gets_its_result_when_the_slow_one_is_done() -> None:
    begun = time.monotonic()
    assert outcomes([lambda: "fast", lambda: time.sleep(0.3) or "slow"]) == ["fast", "slow"]
    assert time.monotonic() - begun > 0.3


def test_all_fail_when_one_store_gives_up_and_only_one_for_its_own_error() -> None:
    def give_up() -> object:
        raise StoreError("dead for 30 minutes")

    def damaged() -> object:
        raise DataError("damaged")

    found = outcomes([lambda: time.sleep(60), give_up])
    assert [str(error) for error in found] == ["dead for 30 minutes"] * 2
    found = outcomes([lambda: time.sleep(60), damaged])
    assert str(found[1]) == "damaged" and found[0] == "lost its peer"


def test_a_stop_request_ends_waiting_but_keeps_finished_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wish, none = (lambda: "SIGTERM"), (lambda: "")
    found = outcomes([lambda: time.sleep(60), lambda: "done"], [none, wish])
    assert all(isinstance(error, StoreError) and "SIGTERM" in str(error) for error in found)
    monkeypatch.setattr(store_waits, "ROUND_SECONDS", 20.0)
    assert outcomes([lambda: 1, lambda: 2], [wish, wish]) == [1, 2]
