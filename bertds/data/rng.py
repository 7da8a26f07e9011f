"""A counter-based random generator: every draw is a pure function of (key, counter).

SplitMix64 (Steele, Lea, Flood 2014) used as a hash: draw number ``i`` of the stream ``key`` is
``mix(key + (i + 1) * GAMMA)``. Nothing must be stored or replayed to compute the millionth draw.
So the order of an epoch, the pairs of a document and the masks of a row can be recomputed on any
rank at any time from (seed, epoch, number).

The function exists three times with equal results: on Python ints (for keys), on numpy vectors (for
permutations) and compiled (for the hot loops, in kernels.py). Keys form a tree: a child's key is a
draw of its parent's stream, and a stream that has children is used for nothing else.
"""

from __future__ import annotations

import numpy as np

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
M1 = 0xBF58476D1CE4E5B9
M2 = 0x94D049BB133111EB

# The purpose of a stream, the first level below the seed. Renumbering would change every run.
CHUNKS, ROWS, SHARD_ORDER, SAMPLE_ORDER, PARTNER_SHARD = range(1, 6)
# Of rows that are prepared (data_prep/stages/instances.py): the seed of a split, and below that the
# order of a file. The latter has the number of ROWS, and changing it would change every file.
SPLIT_ROWS, FILE_ORDER = 101, 2

_GAMMA_U64, _M1_U64, _M2_U64 = np.uint64(GAMMA), np.uint64(M1), np.uint64(M2)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


def random_u64(key: int, counter: int) -> int:
    """Return draw ``counter`` of stream ``key``: an int in [0, 2**64)."""
    word = (key + (counter + 1) * GAMMA) & WORD
    word = ((word ^ (word >> 30)) * M1) & WORD
    word = ((word ^ (word >> 27)) * M2) & WORD
    return word ^ (word >> 31)


def derive_key(seed: int, *path: int) -> int:
    """Return the key at ``path`` below ``seed``, for example ``(ROWS, epoch, shard_number)``."""
    key = random_u64(seed & WORD, 0)
    for step in path:
        key = random_u64(key, step)
    return key


def below(word: int, limit: int) -> int:
    """Map a draw to an int in [0, limit), limit <= 2**32 (bias at most limit / 2**32)."""
    return ((word >> 32) * limit) >> 32


def probability_threshold(probability: float) -> int:
    """Return t such that ``word >> 32 < t`` holds with this probability."""
    return round(probability * 2**32)


def random_u64_array(key: int, count: int) -> np.ndarray:
    """Return the first ``count`` draws of stream ``key``, uint64 [count]."""
    word = np.arange(1, count + 1, dtype=np.uint64)
    word *= _GAMMA_U64
    word += np.uint64(key)
    word = (word ^ (word >> _30)) * _M1_U64
    word = (word ^ (word >> _27)) * _M2_U64
    return word ^ (word >> _31)


def permutation(key: int, count: int) -> np.ndarray:
    """Return a random order of ``range(count)``, int64 [count]."""
    # Sorting random words gives every order with the same probability (ties are negligible).
    return np.argsort(random_u64_array(key, count), kind="stable")
