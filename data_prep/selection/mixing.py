"""Sources in proportions other than their sizes: ``--mix wiki=1,books=2``.

The weight of a source is the expected number of times that each of its documents enters the
training data, after duplicates were removed. A document enters ``floor(weight)`` times. With the
probability of the fractional part it enters once more, which a hash of its text decides. Therefore
the repeated and omitted documents depend only on text and seed, and a larger weight keeps all
documents that a smaller one kept.

- A document that enters 0 times is dropped as ``left_out_by_mix``.
- The first entry has the document's own key. The others have keys hashed from it, so that they are
  elsewhere in the order. They are not duplicates, and are counted as ``documents_repeated``.
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
    """Parse ``wiki=1,books=2``.

    Args:
        text: the option's value; "" = every source once.
        sources: names of the sources that were given.

    Raises:
        ConfigError: the syntax is wrong, a source is not in this run, or a weight is impossible.
    """
    weights: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        # A source's name contains neither "=" nor ",", but may contain ":" and "/".
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
    """Return how many times the document with this key enters."""
    whole = int(weight)
    if whole == weight:
        return whole
    # The key is a hash of text and seed. It also decides the order, so it is hashed once more.
    return whole + (random_u64(key[0] ^ key[1], 0) < (weight - whole) * 2.0**64)


def repeat_key(key: tuple[int, int], number: int) -> tuple[int, int]:
    """Return the key of entry ``number`` (1 = the first repetition)."""
    return random_u64(key[0], number), random_u64(key[1], number)
