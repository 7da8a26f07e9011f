"""Sources in proportions other than their own: ``--mix wiki=1,books=2``.

The weight of a source is the expected number of times that each of its documents enters the
training data, duplicates removed before. A document enters ``floor(weight)`` times, and once more
with the probability of the rest, by a hash of its text: so which documents are repeated or left out
depends on nothing but text and seed, and a larger weight keeps what a smaller one kept.

- A document that enters 0 times is dropped as ``left_out_by_mix``.
- The first entry has the document's own key; the others have keys hashed from it, so that they are
  elsewhere in the order. They are no duplicates, and are counted as ``documents_repeated``.
- Held-out documents are never repeated: the validation split holds each once, and a repetition of
  a held-out document is not written.
- A text that several sources hold enters as often as the largest of their weights says.
"""

from __future__ import annotations

from collections.abc import Sequence

from bertds.data.rng import random_u64
from bertds.errors import ConfigError

LARGEST_WEIGHT = 100.0

Mix = tuple[tuple[str, float], ...]
"""(source, weight), for the sources whose weight is not 1."""


def parse_mix(text: str, sources: Sequence[str]) -> Mix:
    """Read ``wiki=1,books=2``.

    Args:
        text: the option's value; "" = every source once.
        sources: names of the sources that were given.

    Raises:
        ConfigError: not written so, no source of this run, or an impossible weight.
    """
    weights: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        # A source's name may hold "=" no more than ",", but may well hold ":" and "/".
        name, equals, value = item.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if not equals or not 0.0 < weight <= LARGEST_WEIGHT:
            raise ConfigError(
                f"--mix {item}: expected SOURCE=WEIGHT, a weight above 0 and at most "
                f"{LARGEST_WEIGHT:g}"
            )
        # "hf" means all datasets of --hf.
        meant = [s for s in sources if s == name or (name == "hf" and s.startswith("hf:"))]
        if not meant:
            raise ConfigError(
                f"--mix {item}: no such source; the sources are: {', '.join(sources)}"
            )
        for source in meant:
            if source in weights:
                raise ConfigError(f"--mix: {source} is given twice")
            weights[source] = weight
    return tuple(sorted((name, w) for name, w in weights.items() if w != 1.0))


def entries(key: tuple[int, int], weight: float) -> int:
    """Return how many times the document of this key enters."""
    whole = int(weight)
    if whole == weight:
        return whole
    # The key is a hash of text and seed; it also decides the order, so it is hashed once more.
    return whole + (random_u64(key[0] ^ key[1], 0) < (weight - whole) * 2.0**64)


def repeat_key(key: tuple[int, int], number: int) -> tuple[int, int]:
    """Return the key of entry ``number`` (1 = the first repetition)."""
    return random_u64(key[0], number), random_u64(key[1], number)
