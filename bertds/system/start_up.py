"""Makes processes start faster: no garbage collection while loading, patterns on first use."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Iterator
from typing import cast


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Load modules without the garbage collector, while objects exist that are to be released."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def loading(module: str = "") -> Iterator[None]:
    """Load modules or compiled code without the garbage collector.

    Args:
        module: do nothing if this module is already loaded.

    Modules create some hundred thousand objects that live as long as the process. The collector
    would visit them repeatedly during loading (10% of the time), and again in each later full
    collection. Therefore it is off while loading, and ignores the objects that exist afterwards.
    Of these, it never releases any that are in a cycle.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    with paused_collector():
        yield
        # torch and DeepSpeed catch exceptions, while they are imported, in cycles that refer to the
        # frames of our callers. Frozen, these would keep their local variables for ever. And numba
        # leaves hundreds of thousands of objects where it has to compile.
        gc.collect()
        gc.freeze()


class _OnFirstUse:
    """Replaces a pattern; after the first look-up a method is the pattern's own."""

    def __init__(self, source: str, flags: int) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> object:
        value: object = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, value)
        return value


def pattern_on_first_use(source: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled on first use.

    A class with characters beyond Latin-1 takes two milliseconds to compile in every process, and
    most texts never need the patterns of other scripts.
    """
    return cast("re.Pattern[str]", _OnFirstUse(source, flags))
