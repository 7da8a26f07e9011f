"""The tables of words that the compiled loops of ``wordpiece_kernels.py`` read and write.

Nearly all words have at most 15 bytes. They are looked up in ``short`` by open addressing over rows
of four uint64: two with the bytes themselves (the 16th byte is their number, so equal rows are
equal words), one with the value, and one unused. A look-up touches one cache line. Longer words are
in a :class:`Table`, which compares bytes in an arena; so is the vocabulary.

A value, int32, is the id of a word that has one id. A word with several ids (or whose ids
``tokenizers`` must still find) has the value -1 - entry: the ids of entry e are
``ids[id_starts[e]:][:id_sizes[e]]``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPACE, LETTER, PUNCTUATION, OPAQUE, END = range(5)

SHORT_BYTES = 15


class Table(NamedTuple):
    """Byte strings and their numbers, by open addressing.

    ``slots`` contains the upper half of the hash and entry + 1 (0 = empty) at the place given by
    the hash, or at the next free one. ``starts``, ``sizes`` and ``values`` describe entry e, whose
    bytes are in ``arena``.
    """

    slots: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    values: np.ndarray
    arena: np.ndarray
    used: np.ndarray
    """int64 [2]: number of entries, and of bytes in the arena."""


class Cache(NamedTuple):
    """Words seen before; see the module docstring."""

    short: np.ndarray
    """uint64 [slots, 4]."""
    long: Table
    ids: np.ndarray
    id_starts: np.ndarray
    id_sizes: np.ndarray
    used: np.ndarray
    """int64 [3]: number of rows in ``short``, of entries, and of ids."""


class Bytes(NamedTuple):
    """Properties of single bytes and punctuation marks."""

    kinds: np.ndarray
    """uint8 [256]: SPACE, LETTER, PUNCTUATION, OPAQUE or END."""
    lower: np.ndarray
    """uint8 [256], what a byte of an ASCII word becomes."""
    same: np.ndarray
    """uint8 [256], identity."""
    ids: np.ndarray
    """int32 [256], the ids of ASCII punctuation."""
    mark_ids: np.ndarray
    """int32 [256], the ids of the punctuation marks E2 80 xx (dashes, quotes), -1 for the rest."""
    pair_ends: np.ndarray
    """int32 [1920]: end of the normal form of each two-byte character, U+0080 to U+07FF, in
    ``pair_text``; it begins where the one before it ends. Empty: only ``tokenizers`` knows it."""
    pair_text: np.ndarray
    """uint8, the normal forms."""


class Words(NamedTuple):
    """The vocabulary, as bytes of UTF-8."""

    firsts: Table
    """Beginnings of words, with their ids."""
    rests: Table
    """Continuations without their ``##``."""
    longest: int
    """Bytes of the longest token."""
    unknown: int
    """Id of [UNK]."""


def new_table(entries: int, arena_bytes: int) -> Table:
    """Return an empty table; its slots are at most half full."""
    slots = 1 << int(2 * entries - 1).bit_length()
    return Table(
        slots=np.zeros(slots, np.uint64),
        starts=np.zeros(entries, np.int64),
        sizes=np.zeros(entries, np.int32),
        values=np.zeros(entries, np.int32),
        arena=np.zeros(arena_bytes, np.uint8),
        used=np.zeros(2, np.int64),
    )


def new_cache(entries: int) -> Cache:
    """Return an empty cache of at most ``entries`` words."""
    return Cache(
        short=np.zeros((1 << int(2 * entries - 1).bit_length(), 4), np.uint64),
        long=new_table(max(64, entries // 4), 8 * entries),
        ids=np.zeros(8 * entries, np.int32),
        id_starts=np.zeros(entries, np.int64),
        id_sizes=np.zeros(entries, np.int32),
        used=np.zeros(3, np.int64),
    )
