"""What the compiled loops of ``wordpiece_kernels.py`` read and write: tables of words.

Words of up to 15 bytes, nearly all, are looked up in ``short``: open addressing over rows of four
uint64, which are the bytes themselves (the 16th is their number, so equal rows are equal words),
the value, and nothing; a look-up touches one line of the processor's cache. Longer ones are in a
:class:`Table`, which compares bytes in an arena; so does the vocabulary.

A value, int32, is the id of a word that has one, or -1 - entry of a word that has several (or whose
ids ``tokenizers`` has still to find): the ids of entry e are ``ids[id_starts[e]:][:id_sizes[e]]``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPACE, LETTER, PUNCTUATION, OPAQUE, END = range(5)

SHORT_BYTES = 15


class Table(NamedTuple):
    """Byte strings and their numbers, by open addressing.

    ``slots`` holds the upper half of the hash and entry + 1 (0 = empty) at the hash's place or the
    next free one; ``starts``, ``sizes`` and ``values`` describe entry e, whose bytes are in
    ``arena``.
    """

    slots: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    values: np.ndarray
    arena: np.ndarray
    used: np.ndarray
    """int64 [2]: entries, bytes of the arena."""


class Cache(NamedTuple):
    """Words seen before; see above."""

    short: np.ndarray
    """uint64 [slots, 4]."""
    long: Table
    ids: np.ndarray
    id_starts: np.ndarray
    id_sizes: np.ndarray
    used: np.ndarray
    """int64 [3]: rows of ``short``, entries, ids."""


class Bytes(NamedTuple):
    """What single bytes and marks are."""

    kinds: np.ndarray
    """uint8 [256]."""
    lower: np.ndarray
    """uint8 [256], what a byte of an ASCII word becomes."""
    same: np.ndarray
    """uint8 [256], identity."""
    ids: np.ndarray
    """int32 [256], the ids of ASCII punctuation."""
    mark_ids: np.ndarray
    """int32 [256], the ids of the punctuation marks E2 80 xx (dashes, quotes), -1 for the rest."""
    pair_ends: np.ndarray
    """int32 [1920], where the normal form of each character of two bytes, U+0080 to U+07FF, ends in
    ``pair_text``; it begins where the last one's ends. Empty: only ``tokenizers`` knows."""
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
