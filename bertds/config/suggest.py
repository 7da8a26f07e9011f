"""Suggests the nearest known name, for error messages."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " (did you mean X?)" for the known name closest to ``name``, or "".

    Args:
        name: what the user wrote.
        known: the names that could have been meant.
        cutoff: minimum similarity, from 0 to 1.
    """
    from difflib import get_close_matches  # imported here, since most runs need no suggestion

    known = list(known)
    close = get_close_matches(name, known, n=1, cutoff=cutoff)
    if not close:  # perhaps the last part is right, or nearly so, and the section wrong or missing
        by_last_part = {key.rpartition(".")[2]: key for key in reversed(known)}
        last = name.rpartition(".")[2]
        parts = get_close_matches(last, by_last_part, n=1, cutoff=max(cutoff, 0.75))
        close = [by_last_part[part] for part in parts]
    return f" (did you mean {close[0]}?)" if close else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Return the same, or "; allowed: ..." if no name is close and there are at most 12."""
    names = sorted(known)
    return nearest(name, names) or (f"; allowed: {', '.join(names)}" if len(names) <= 12 else "")
