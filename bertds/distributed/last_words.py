"""What ranks say in the store when they leave before the end: why, and with which exit code."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

from bertds.distributed.liveness import TimedStore

CONNECTION_WORDS = (
    *("gloo", "nccl", "connection", "socket", "timed out", "timeout", "peer"),
    *("distnetworkerror", "broken pipe"),
)
"""An error of a collective operation holds one of these."""
_LONGEST = 500


class Farewell(NamedTuple):
    """Why a rank leaves."""

    code: int
    """Its exit code: 1 for a failure; others stop early with it."""
    text: str


class LastWords:
    """This rank's, and those of the others that were asked for.

    Args:
        rank: this process.
    """

    def __init__(self, rank: int) -> None:
        self.left: set[int] = set()
        """The others that have said that they leave."""
        self.said = threading.Event()
        """Set once this rank's word is in the store."""
        self._rank = rank
        self._own: Farewell | None = None

    def say(self, text: str, code: int) -> None:
        """Leave a word for the others, for :meth:`publish`; the first one counts."""
        self._own = self._own or Farewell(code, text[:_LONGEST])

    def publish(self, store: TimedStore) -> None:
        """Put this rank's word into the store; called by the thread that talks."""
        if self._own is not None and not self.said.is_set():
            store.set(_key(self._rank), json.dumps(self._own))
            self.said.set()

    def hear(self, store: TimedStore, other: int) -> Farewell | None:
        """Return what another rank has said, or None."""
        if not store.has(_key(other)):
            return None
        self.left.add(other)
        return Farewell(*json.loads(store.get(_key(other))))


def is_of_a_collective(error: BaseException) -> bool:
    """Return whether an error looks like that of a collective operation that a peer has left."""
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in CONNECTION_WORDS)


def _key(rank: int) -> str:
    return f"bertds/left/{rank}"
