"""Suggests the nearest known name, for error messages."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name closest to ``name``, or ""."""
    from difflib import get_close_matches  # imported here, since most runs need no suggestion

    known = list(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # perhaps a correct name in the wrong section
        close = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f" (did you mean {close[0]}?)" if close else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Return the same, or "; allowed: ..." if no name is close and there are at most 12."""
    names = sorted(known)
    return nearest(name, names) or (f"; allowed: {', '.join(names)}" if len(names) <= 12 else "")
