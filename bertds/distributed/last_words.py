"""Messages in the store from ranks that leave early: the reason and the exit code."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

from bertds.distributed.liveness import TimedStore

CONNECTION_WORDS = (
    *("gloo", "nccl", "connection", "socket", "timed out", "timeout", "peer"),
    *("distnetworkerror", "broken pipe"),
)
"""An error of a collective operation contains one of these."""
_LONGEST = 500


class Farewell(NamedTuple):
    """The message of a rank that leaves."""

    code: int
    """Its exit code: 1 for a failure; with any other code it stops early, and the others too."""
    text: str


class LastWords:
    """This rank's message, and those of the ranks that were asked for.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self.left: set[int] = set()
        """The ranks that have announced that they leave."""
        self.said = threading.Event()
        """Set once this rank's message is in the store."""
        self._rank = rank
        self._own: Farewell | None = None

    def say(self, text: str, code: int) -> None:
        """Set this rank's message for :meth:`publish`; only the first one counts."""
        self._own = self._own or Farewell(code, text[:_LONGEST])

    def publish(self, store: TimedStore) -> None:
        """Write this rank's message to the store; called by the talking thread."""
        if self._own is not None and not self.said.is_set():
            store.set(_key(self._rank), json.dumps(self._own))
            self.said.set()

    def hear(self, store: TimedStore, other: int) -> Farewell | None:
        """Return the message of another rank, or None."""
        if not store.has(_key(other)):
            return None
        self.left.add(other)
        return Farewell(*json.loads(store.get(_key(other))))


def is_of_a_collective(error: BaseException) -> bool:
    """Return whether an error looks like that of a collective operation that lost a peer."""
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in CONNECTION_WORDS)


def _key(rank: int) -> str:
    return f"bertds/left/{rank}"
