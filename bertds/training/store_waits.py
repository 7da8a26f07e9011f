"""Waiting for a store without losing the other ranks.

A rank that waits alone makes the others wait for it in a collective operation, which has its own
timeout. So work that may wait for a store is done in a thread, while all ranks repeatedly exchange
their state. They continue, stop or fail together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from bertds.data.loader import BatchLoader
from bertds.data.sources.base import Source
from bertds.distributed.ranks import Ranks
from bertds.distributed.step_sync import Agreement
from bertds.errors import StoreError

T = TypeVar("T")
ROUND_SECONDS = 0.5
"""The time between two exchanges of the ranks' states."""


def together(
    ranks: Ranks,
    work: Callable[[], T],
    on_round: Callable[[], None] = lambda: None,
    stop: Callable[[], str] = lambda: "",
) -> T:
    """Do this rank's part of work that may wait for a store. Collective.

    Args:
        ranks: the processes of the run.
        work: this rank's part; must not be collective.
        on_round: called at each exchange, for example to show that the wait is no hang.
        stop: returns why this rank wants to stop waiting, or "".

    Raises:
        StoreError: on every rank, if any rank's store did not answer in time, or any rank wanted to
            stop meanwhile.
        Exception: on this rank, any other error of its work.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=do, name="bertds-store-wait", daemon=True)
    thread.start()
    while True:
        on_round()
        thread.join(ROUND_SECONDS)
        done = not thread.is_alive()
        given_up = str(errors[0]) if errors and isinstance(errors[0], StoreError) else ""
        # Every rank sees the same states, so all take the same branch below.
        states = ranks.gather_objects((done, given_up, stop()))
        for _, problem, _ in states:
            if problem:
                raise StoreError(problem)
        if errors:
            raise errors[0]
        if all(finished for finished, _, _ in states):
            return results[0]
        # Checked last: a rank whose work is complete has no reason to give it up.
        for _, _, reason in states:
            if reason:
                raise StoreError(f"stopped while waiting for a store: {reason}")


def wait_for_batch(
    ranks: Ranks, loader: BatchLoader, agreement: Agreement, on_round: Callable[[], None]
) -> bool:
    """Wait until every rank has its next batch. Collective.

    Args:
        ranks: the processes of the run.
        loader: this rank's loader.
        agreement: is notified if all ranks must stop.
        on_round: called at each exchange, for example to show that the wait is no hang.

    Returns:
        True once every rank has its batch. False if the ranks have agreed to stop, because a store
        did not answer in time or a rank was asked to stop; ``agreement`` holds the reason.
    """
    while True:
        on_round()
        there = loader.wait(ROUND_SECONDS)
        reason = str(loader.gave_up or "") or agreement.watch.reason()
        states = ranks.gather_objects((there, reason))
        for _, problem in states:
            if problem:
                agreement.stop(problem)
                return False
        if all(ready for ready, _ in states):
            return True


def made_of(source: Source, ranks: Ranks, make: Callable[[], T], stop: Callable[[], str]) -> T:
    """Create an object that reads from a source at once. Collective if the source may be slow."""
    return together(ranks, make, stop=stop) if source.may_stall else make()
