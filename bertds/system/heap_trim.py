"""Gives memory that is free but scattered back to the system, on a CPU.

Unpadded rows have new lengths in every micro batch, so tensors of ever new sizes are made and
dropped, and oneDNN keeps small prepared kernels for each shape, which end up between them in
memory. glibc gives back only the end of its heap: the process would grow to several times what it
uses. ``malloc_trim`` gives back every free page. It is called when the process has become twice as
large as a step needs, not before: in a run of constant shapes, never.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from bertds.system.memory import resident_bytes

GROWTH = 2.0
"""The heap is trimmed when the process is this multiple of one step after the last time"""
ROOM = 128 * 2**20
"""and by at least this number of bytes larger."""


class Heap:
    """Watches the size of this process.

    Args:
        size: returns the bytes of memory that the process holds; 0 = unknown, never trim.
        trim: gives free pages back.
    """

    def __init__(
        self, size: Callable[[], int] | None = None, trim: Callable[[], None] | None = None
    ) -> None:
        self._size = size or resident_bytes
        self._trim = trim or _malloc_trim()
        self._limit = 0

    def look(self) -> bool:
        """Trim if the process has grown; costs some microseconds otherwise. True: it trimmed."""
        if self._trim is None:
            return False
        size = self._size()
        if not self._limit:
            self._limit = max(int(size * GROWTH), size + ROOM) if size else 0
            return False
        if size <= self._limit:
            return False
        self._trim()
        self._limit = 0  # the next look says how much a step needs
        return True


def _malloc_trim() -> Callable[[], None] | None:
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None

    def trim() -> None:
        function(0)

    return trim
