"""The nearest known name, for error texts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name closest to ``name``, or ""."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # a right name in the wrong section
        close = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f" (did you mean {close[0]}?)" if close else ""
