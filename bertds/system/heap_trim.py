"""Returns free but scattered memory to the system, on a CPU.

Unpadded rows have new lengths in every micro batch, so tensors of ever new sizes are allocated and
freed. oneDNN caches small prepared kernels per shape, which end up between them in memory. glibc
returns only the end of its heap, so the process would grow to several times what it uses.
``malloc_trim`` returns every free page. It is called when the process has become twice as large as
a step needs; with constant shapes this never happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from bertds.system.memory import resident_bytes

GROWTH = 2.0
"""The heap is trimmed if the process has grown by this factor since one step after the last time"""
ROOM = 128 * 2**20
"""and by at least this number of bytes."""


class Heap:
    """Watches the size of this process.

    Args:
        size: returns the bytes of memory that the process holds; 0 = unknown, never trim.
        trim: returns free pages to the system.
    """

    def __init__(
        self, size: Callable[[], int] | None = None, trim: Callable[[], None] | None = None
    ) -> None:
        self._size = size or resident_bytes
        self._trim = trim or _malloc_trim()
        self._limit = 0

    def look(self) -> bool:
        """Trim if the process has grown, and return whether it did. Otherwise takes some us."""
        if self._trim is None:
            return False
        size = self._size()
        if not self._limit:
            self._limit = max(int(size * GROWTH), size + ROOM) if size else 0
            return False
        if size <= self._limit:
            return False
        self._trim()
        self._limit = 0  # the next call measures how much a step needs
        return True


def _malloc_trim() -> Callable[[], None] | None:
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None

    def trim() -> None:
        function(0)

    return trim
