"""The peers on this machine, which can be watched by process id."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import Any

from bertds.distributed.liveness import CpuWatch
from bertds.system.logs import log
from bertds.system.processes import start_time


class Neighbours:
    """Peers on this machine, by rank."""

    def __init__(self) -> None:
        self._who: dict[int, dict[str, Any]] = {}
        self._cpu = CpuWatch()

    def add(self, rank: int, who: dict[str, Any]) -> None:
        """Watch a peer if it is on this machine.

        Args:
            rank: of the peer.
            who: what it reports about itself: host, pid and start time.
        """
        near = who["host"] == socket.gethostname() and who["start"]
        # Containers may share a host name but not process ids.
        if near and start_time(who["pid"]) == who["start"]:
            self._who[rank] = who

    def ended(self) -> set[int]:
        """Return the ranks whose process no longer exists."""
        return {rank for rank in tuple(self._who) if not self._exists(rank)}

    def look(self, now: float) -> None:
        """Record their processor times; ``now`` is on the caller's clock."""
        for who in tuple(self._who.values()):
            self._cpu.look(who["pid"], now)

    def ran_since(self, rank: int, then: float) -> bool:
        """Return whether a process on this machine is known to have run after ``then``."""
        return rank in self._who and self._cpu.ran_since(self._who[rank]["pid"], then)

    def ranks(self) -> list[int]:
        """Return the ranks on this machine."""
        return list(self._who)

    def kill(self, rank: int, why: str) -> None:
        """Kill a process, unless its id belongs to another one by now."""
        if self._exists(rank):
            pid = self._who[rank]["pid"]
            # Logged first: the launcher restarts the ranks as soon as one of them has ended.
            log.warning("%s; killing process %d", why, pid)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _exists(self, rank: int) -> bool:
        who = self._who[rank]
        return bool(start_time(who["pid"]) == who["start"])
