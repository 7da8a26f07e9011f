"""Runs many small trials in a forked process that may crash, grow, or never return."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

GROWTH_KIB = 1 << 20
"""A trial may add this much to the highest memory use of the process: 1 GiB."""


class Trial(NamedTuple):
    """One trial and how it ended."""

    number: int
    result: Any
    fault: str
    """Why there is no result; empty if there is one."""
    seconds: float
    """CPU time."""


def trials(
    work: Callable[[int], Any], count: int, seconds: float, growth_kib: int = GROWTH_KIB
) -> Iterator[Trial]:
    """Call ``work`` with 0 to ``count - 1`` in a forked process; yield how each call ended.

    A call that does not return within ``seconds`` of wall time or that ends its process, as a
    fault in a library written in C does, is one trial with a fault; the next ones follow in a new
    process.
    """
    begin = 0
    while begin < count:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _serve(work, range(begin, count), writer, growth_kib)
        os.close(writer)
        ended = ""
        try:
            while begin < count and not ended:
                found = _receive(reader, seconds)
                if found:
                    yield Trial(begin, *pickle.loads(found))
                else:
                    ended = _end(pid)
                    fault = f"no result within {seconds:.0f} s" if found is None else ended
                    yield Trial(begin, None, fault, seconds)
                begin += 1
        finally:
            os.close(reader)
            if not ended:
                _end(pid)


def _serve(work: Callable[[int], Any], numbers: range, writer: int, growth_kib: int) -> None:
    try:
        for number in numbers:
            before, began = _highest_kib(), time.process_time()
            try:
                result, fault = work(number), ""
            except BaseException:
                result, fault = None, traceback.format_exc()
            grown = _highest_kib() - before
            if grown > growth_kib and not fault:
                fault = f"took {grown >> 10} MiB"
            body = pickle.dumps((result, fault, time.process_time() - began))
            os.write(writer, struct.pack("<Q", len(body)))
            while body:
                body = body[os.write(writer, body) :]
    finally:
        os._exit(0)


def _highest_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _receive(reader: int, seconds: float) -> bytes | None:
    """Return the next message, nothing at the end, None when it does not come in time."""
    if not select.select([reader], [], [], seconds)[0]:
        return None
    head = os.read(reader, 8)
    if len(head) < 8:
        return b""
    (left,) = struct.unpack("<Q", head)
    parts = []
    while left:
        part = os.read(reader, left)
        if not part:
            return b""
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _end(pid: int) -> str:
    """End the process, if it still runs, and say how it ended."""
    for _ in range(20):  # one that ended on its own says how
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return f"exit code {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "killed"
