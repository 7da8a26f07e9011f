"""A small process next to each rank, which kills the rank if Python no longer runs in it.

A thread cannot do this: while a call holds Python's lock and does not return, no thread of the
process runs. The process also kills a rank that does not manage to leave, because memory is
exhausted or a library hangs. It is started by its path and imports nothing of bertds, so it takes
a few milliseconds and 10 MB.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

TICK = 0.5
"""Seconds between two checks."""


class Watchdog:
    """The rank's side of the watchdog.

    Args:
        rank: of this process, for the message.
    """

    def __init__(self, rank: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._rank = rank

    def start(self) -> Watchdog:
        """Start the process; if the machine has no room for it, continue without."""
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self._rank)]
        with suppress(OSError):
            # A session of its own: the terminal's Ctrl-C and a launcher's signals do not reach it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
            assert self._process.stdin is not None
            self._pipe = self._process.stdin.fileno()
            os.set_blocking(self._pipe, False)
        return self

    def alive(self, limit_seconds: float) -> None:
        """Report that Python runs, and after how many seconds the next report is due."""
        self._write(b"%.1f\n" % limit_seconds)

    def leaving(self, limit_seconds: float) -> None:
        """Report that this process must be gone after this time, whatever else it reports."""
        self._write(b"leave%.1f\n" % limit_seconds)

    def _write(self, line: bytes) -> None:
        if self._pipe >= 0:
            with suppress(OSError):  # the process is gone, or its pipe is full
                os.write(self._pipe, line)

    def stop(self) -> None:
        """End the process."""
        self._pipe = -1
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            self._process = None


def watch(pid: int, rank: int) -> None:
    """Watch the parent until it ends, closes the pipe, or is silent for too long.

    Time in which the parent is stopped (SIGSTOP, a suspended job) does not count. Time in which
    this process gets no CPU counts only a little.
    """
    limit, silent, leaves = float("inf"), 0.0, False
    before = time.monotonic()
    while os.getppid() == pid:
        ready, _, _ = select.select([0], [], [], TICK)
        now = time.monotonic()
        passed, before = min(now - before, 3 * TICK), now
        # A report restarts the clock; an announced exit cannot be taken back.
        if ready:
            text = os.read(0, 65536)
            if not text:
                return
            for line in text.decode().split():
                if line.startswith("leave"):
                    limit, leaves, silent = float(line[5:]), True, 0.0
                elif not leaves:
                    limit, silent = float(line), 0.0
        elif _is_stopped(pid):
            continue
        silent += passed if leaves or not ready else 0.0
        if silent > limit and os.getppid() == pid:
            why = (
                f"did not exit within {limit:.0f} s after it stopped"
                if leaves
                else f"is hung: it has not run any Python code for {silent:.0f} s"
            )
            sys.stderr.write(f"bertds: rank {rank} (process {pid}) {why}; killing it\n")
            sys.stderr.flush()
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            return


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
