"""A compiled hash table from byte strings to numbers, for :mod:`data_prep.wordpiece_kernels`."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

OFFSET = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
PRIME = np.uint64(0x100000001B3)
SHIFT = np.uint64(29)


class Table(NamedTuple):
    """Byte strings and their numbers, by open addressing.

    ``slots`` holds entry + 1 (0 = empty) at the hash's place or the next free one; ``starts``,
    ``sizes``, ``hashes`` and ``values`` describe entry e, whose bytes lie in ``arena``.
    """

    slots: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    values: np.ndarray
    arena: np.ndarray
    used: np.ndarray
    """int64 [2]: entries, bytes of the arena."""


def new_table(entries: int, arena_bytes: int) -> Table:
    """Return an empty table; its slots are at most half full."""
    slots = 1 << int(2 * entries - 1).bit_length()
    return Table(
        slots=np.zeros(slots, np.int32),
        starts=np.zeros(entries, np.int64),
        sizes=np.zeros(entries, np.int32),
        hashes=np.zeros(entries, np.uint64),
        values=np.zeros(entries, np.int32),
        arena=np.zeros(arena_bytes, np.uint8),
        used=np.zeros(2, np.int64),
    )


@numba.njit(cache=True, nogil=True)
def hash_bytes(text, begin, end, lower):
    """Return the hash of ``text[begin:end]`` as ``lower`` maps its bytes."""
    word = OFFSET
    for i in range(begin, end):
        word = (word ^ np.uint64(lower[text[i]])) * PRIME
    return word ^ (word >> SHIFT)


@numba.njit(cache=True, nogil=True)
def find_bytes(table, text, begin, end, lower, code):
    """Return the entry of ``text[begin:end]``, or -1 - slot where it would go."""
    mask = len(table.slots) - 1
    slot = np.int64(code & np.uint64(mask))
    while True:
        entry = table.slots[slot] - 1
        if entry < 0:
            return -1 - slot
        if table.hashes[entry] == code and table.sizes[entry] == end - begin:
            start = table.starts[entry]
            same = True
            for i in range(end - begin):
                if table.arena[start + i] != lower[text[begin + i]]:
                    same = False
                    break
            if same:
                return np.int64(entry)
        slot = (slot + 1) & mask


@numba.njit(cache=True, nogil=True)
def insert_bytes(table, text, begin, end, lower, code, slot, value):
    """Add ``text[begin:end]``, which is not there."""
    entry, at = table.used[0], table.used[1]
    table.slots[slot] = entry + 1
    table.starts[entry] = at
    table.sizes[entry] = end - begin
    table.hashes[entry] = code
    table.values[entry] = value
    for i in range(end - begin):
        table.arena[at + i] = lower[text[begin + i]]
    table.used[0], table.used[1] = entry + 1, at + end - begin


@numba.njit(cache=True, nogil=True)
def fill(table, text, ends, values, same):
    """Insert the strings of ``text`` that end at ``ends``, all different; ``same`` is identity."""
    begin = 0
    for number in range(len(ends)):
        end = ends[number]
        code = hash_bytes(text, begin, end, same)
        slot = -1 - find_bytes(table, text, begin, end, same, code)
        insert_bytes(table, text, begin, end, same, code, slot, values[number])
        begin = end
