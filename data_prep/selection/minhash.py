"""MinHash signatures of documents, as hashes of bands (locality-sensitive hashing).

Take random orders of all n-grams. The share of orders in which two documents have the same minimum
estimates the Jaccard similarity s of their n-gram sets (Broder 1997). The minima are grouped into
``bands`` bands of ``rows`` minima. Two documents are candidates if all minima of a band agree. The
probability of this is ``1 - (1 - s^rows)^bands``. With FineWeb's 14 bands of 8 rows over 5-grams of
words (arXiv:2406.17557, section 3.4) it is 92% at s = 0.8, 77% at 0.75 and 5% at 0.5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bertds.data.rng import random_u64_array
from bertds.errors import ConfigError
from bertds.system.numba_jit import compiled
from data_prep.selection.words import mixed, ngram_hashes, word_hashes

# Fixed, not the user's seed, so that signatures of two preparations can be compared.
_ORDERS_KEY = 0x6D696E68617368
_32 = np.uint64(32)
_ONE = np.uint64(1)


@lru_cache(maxsize=4)
def _orders(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of ``count`` random orders of 64-bit numbers: (xor, odd factor)."""
    numbers = random_u64_array(_ORDERS_KEY, 2 * count)
    return numbers[:count].copy(), numbers[count:] | _ONE


def band_hashes(text: str, settings: MinHashSettings) -> np.ndarray:
    """Return the hash of every band of a document, uint64 [bands].

    A text without words gives hashes of its bytes, so that it resembles no other text.
    """
    words = word_hashes(text)
    if len(words) == 0:
        words = np.array([hash_of_bytes(text)], np.uint64)
    grams = ngram_hashes(words, min(settings.ngram, len(words)))
    minima = np.full(settings.bands * settings.rows, np.uint64(2**64 - 1), np.uint64)
    flips, factors = _orders(len(minima))
    _minima(grams, flips, factors, minima)
    out = np.empty(settings.bands, np.uint64)
    _bands(minima, settings.rows, out)
    return out


def hash_of_bytes(text: str) -> int:
    """Return a 64-bit hash of a text that has no words."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@compiled
def _minima(grams, flips, factors, minima):
    for gram in grams:
        for i in range(len(flips)):
            # Multiply-shift hashing: only the upper half of the product is well mixed.
            value = ((gram ^ flips[i]) * factors[i]) >> _32
            minima[i] = min(minima[i], value)


@compiled
def _bands(minima, rows, out):
    for band in range(len(out)):
        code = np.uint64(band)
        for i in range(band * rows, (band + 1) * rows):
            code = mixed(code ^ minima[i])
        out[band] = code


@dataclass(frozen=True, kw_only=True)
class MinHashSettings:
    """How similar documents must be to count as near-duplicates; see ``selection/minhash.py``."""

    bands: int = 14
    rows: int = 8
    ngram: int = 5
    """Number of words in an n-gram; a shorter text is one n-gram."""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("bands", self.bands, 200),
            ("rows", self.rows, 100),
            ("ngram", self.ngram, 50),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"--minhash-{name} {value}: allowed: 1 to {most}")
