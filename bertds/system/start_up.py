"""A sooner start of a process: no garbage collection while it loads, patterns on first use."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Iterator
from typing import cast


@contextlib.contextmanager
def loading(module: str = "") -> Iterator[None]:
    """Load modules or compiled code without the garbage collector.

    Args:
        module: do nothing if this one is loaded already.

    Modules make some hundred thousand objects that live as long as the process. The collector would
    walk over them again and again as they are made (10 % of the time), and later with each of
    its full rounds. So it is off meanwhile, and what is there then is out of its sight.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


class _OnFirstUse:
    """Represents a pattern; each method is looked up once and then is the pattern's own."""

    def __init__(self, source: str, flags: int) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> object:
        value: object = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, value)
        return value


def pattern_on_first_use(source: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used.

    A class with characters beyond Latin-1 takes two milliseconds to compile, in every process;
    most texts never need those of other scripts.
    """
    return cast("re.Pattern[str]", _OnFirstUse(source, flags))
