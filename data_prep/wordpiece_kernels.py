"""The compiled inner loops of :mod:`data_prep.wordpiece`: bytes -> words -> ids.

A table maps byte strings to numbers by open addressing: ``slots`` holds entry + 1 (0 = empty) at
the hash's place or the next free one; ``starts``, ``sizes`` and ``hashes`` describe entry e, whose
bytes lie in ``arena``. Two of them are filled once with the vocabulary (beginnings and
continuations of words); the third is the cache of whole words, and grows.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

SPACE, LETTER, PUNCTUATION, OPAQUE = range(4)

_OFFSET = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
_PRIME = np.uint64(0x100000001B3)
_SHIFT = np.uint64(29)


class Table(NamedTuple):
    """Byte strings and their numbers; see above."""

    slots: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
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
        arena=np.zeros(arena_bytes, np.uint8),
        used=np.zeros(2, np.int64),
    )


@numba.njit(cache=True, nogil=True)
def _hash(text, begin, end, lower):
    word = _OFFSET
    for i in range(begin, end):
        word = (word ^ np.uint64(lower[text[i]])) * _PRIME
    return word ^ (word >> _SHIFT)


@numba.njit(cache=True, nogil=True)
def _find(table, text, begin, end, lower, code):
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
def _insert(table, text, begin, end, lower, code, slot):
    """Add ``text[begin:end]``, which is not there, and return its entry."""
    entry, at = table.used[0], table.used[1]
    table.slots[slot] = entry + 1
    table.starts[entry] = at
    table.sizes[entry] = end - begin
    table.hashes[entry] = code
    for i in range(end - begin):
        table.arena[at + i] = lower[text[begin + i]]
    table.used[0], table.used[1] = entry + 1, at + end - begin
    return entry


@numba.njit(cache=True, nogil=True)
def fill(table, text, ends, same):
    """Insert the strings of ``text`` that end at ``ends``, all different; ``same`` is identity."""
    begin = 0
    for end in ends:
        code = _hash(text, begin, end, same)
        slot = -1 - _find(table, text, begin, end, same, code)
        _insert(table, text, begin, end, same, code, slot)
        begin = end


@numba.njit(cache=True, nogil=True)
def _pieces(text, begin, end, lower, firsts, first_ids, rests, rest_ids, unknown, ids, at):
    """Write the WordPiece ids of an ASCII word to ``ids[at:]`` (greedy longest match)."""
    count = 0
    start = begin
    while start < end:
        stop = end
        number = -1
        while stop > start:
            code = _hash(text, start, stop, lower)
            if start == begin:
                entry = _find(firsts, text, start, stop, lower, code)
                if entry >= 0:
                    number = first_ids[entry]
            else:
                entry = _find(rests, text, start, stop, lower, code)
                if entry >= 0:
                    number = rest_ids[entry]
            if number >= 0:
                break
            stop -= 1
        if number < 0:
            ids[at] = unknown
            return 1
        ids[at + count] = number
        count += 1
        start = stop
    return count


@numba.njit(cache=True, nogil=True)
def scan(
    text, sentence_ends, kinds, lower, same, longest_word,
    cache, id_starts, id_sizes, ids, ids_used,
    firsts, first_ids, rests, rest_ids, unknown,
    words, word_ends, opaque,
):  # fmt: skip
    """Find the cache entry of every word; add new ASCII words with their ids.

    Args:
        text: uint8, sentences one after the other, a space between two.
        sentence_ends: int64 [sentences], exclusive.
        kinds: uint8 [256], what a byte is.
        lower: uint8 [256], what a byte of an ASCII word becomes.
        same: uint8 [256], identity: opaque chunks are kept as they are.
        longest_word: longer ones are entry 0, which is [UNK].
        cache: the table of whole words and opaque chunks.
        id_starts: int64 [entries], where an entry's ids begin in ``ids``.
        id_sizes: int32 [entries].
        ids: the ids of all entries.
        ids_used: int64 [1], how many of them are taken.
        firsts: table of the vocabulary's word beginnings.
        first_ids: their ids.
        rests: table of the continuations without their ``##``.
        rest_ids: their ids.
        unknown: id of [UNK].
        words: int32 output, entries.
        word_ends: int64 output [sentences], exclusive.
        opaque: int32 output, new entries whose ids the caller must find.

    Returns:
        Sentences done (fewer than all: the cache is full), and the number of opaque entries.
    """
    count = 0
    opaques = 0
    position = 0
    for sentence in range(len(sentence_ends)):
        sentence_end = sentence_ends[sentence]
        size = sentence_end - position
        if (
            cache.used[0] + size > len(cache.starts)
            or cache.used[1] + size > len(cache.arena)
            or ids_used[0] + size > len(ids)
        ):
            return sentence, opaques
        while position < sentence_end:
            kind = kinds[text[position]]
            if kind == SPACE:
                position += 1
                continue
            chunk_end = position
            clean = True
            while chunk_end < sentence_end and kinds[text[chunk_end]] != SPACE:
                if kinds[text[chunk_end]] == OPAQUE:
                    clean = False
                chunk_end += 1
            if not clean:
                code = _hash(text, position, chunk_end, same)
                entry = _find(cache, text, position, chunk_end, same, code)
                if entry < 0:
                    entry = _insert(cache, text, position, chunk_end, same, code, -1 - entry)
                    opaque[opaques] = entry
                    opaques += 1
                words[count] = entry
                count += 1
                position = chunk_end
                continue
            while position < chunk_end:
                end = position + 1
                if kinds[text[position]] == LETTER:
                    while end < chunk_end and kinds[text[end]] == LETTER:
                        end += 1
                if end - position > longest_word:
                    entry = np.int64(0)
                else:
                    code = _hash(text, position, end, lower)
                    entry = _find(cache, text, position, end, lower, code)
                    if entry < 0:
                        entry = _insert(cache, text, position, end, lower, code, -1 - entry)
                        at = ids_used[0]
                        id_starts[entry] = at
                        id_sizes[entry] = _pieces(
                            text, position, end, lower,
                            firsts, first_ids, rests, rest_ids, unknown, ids, at,
                        )  # fmt: skip
                        ids_used[0] = at + id_sizes[entry]
                words[count] = entry
                count += 1
                position = end
        word_ends[sentence] = count
        position = sentence_end + 1
    return len(sentence_ends), opaques


@numba.njit(cache=True, nogil=True)
def count_ids(words, word_ends, id_sizes, lengths):
    """Write the number of tokens of each sentence to ``lengths``; return the total."""
    total = 0
    word = 0
    for sentence in range(len(word_ends)):
        own = 0
        while word < word_ends[sentence]:
            own += id_sizes[words[word]]
            word += 1
        lengths[sentence] = own
        total += own
    return total


@numba.njit(cache=True, nogil=True)
def gather(words, count, id_starts, id_sizes, ids, out):
    """Write the ids of all words in a row."""
    at = 0
    for word in range(count):
        entry = words[word]
        start = id_starts[entry]
        for i in range(id_sizes[entry]):
            out[at + i] = ids[start + i]
        at += id_sizes[entry]
