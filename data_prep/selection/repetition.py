"""Gopher's repetition rules (Rae et al., arXiv:2112.11446, table A1), compiled.

Here a document's paragraphs are its lines, so the rules for paragraphs are those for lines. In a
script without spaces a letter counts as half a word.
"""

from __future__ import annotations

import numpy as np

from bertds.data.scripts import mostly_unspaced, spaced_words
from bertds.system.numba_jit import compiled
from data_prep.selection.words import mixed, ngram_hashes

_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_REPEATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
_OFFSET = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
_PRIME = np.uint64(0x100000001B3)


def repetition(text: str) -> str:
    """Return why a text is too repetitive, or "" if it is not."""
    seen: set[str] = set()
    lines = [line for line in text.split("\n") if line]
    repeated = characters = 0
    for line in lines:
        if line in seen:
            repeated += 1
            characters += len(line)
        seen.add(line)
    if repeated > 0.3 * len(lines):
        return "repetition_lines"
    if characters > 0.2 * len(text):
        return "repetition_line_characters"
    # The other rules compare the share of characters in repeated n-grams with their thresholds.
    letters = mostly_unspaced(text)
    words, lengths = _words(spaced_words(text) if letters else text)
    size, gap = (2, 0) if letters else (1, 1)  # letters per word; spaces between words
    for n, share in _TOP:
        grams = ngram_hashes(words, n * size)
        if len(grams) and _top_characters(grams, lengths, n * size, gap) > share * len(text):
            return f"repetition_top_{n}_gram"
    for n, share in _REPEATED:
        grams = ngram_hashes(words, n * size)
        if len(grams) and _repeated_characters(grams, lengths, n * size) > share * len(text):
            return f"repetition_{n}_gram"
    return ""


def _words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash (uint64) and the length in characters (int64) of each word between spaces."""
    data = np.frombuffer(" ".join(text.split()).encode("utf-8", "surrogatepass"), np.uint8)
    words = np.empty(len(data) // 2 + 1, np.uint64)
    lengths = np.empty(len(words), np.int64)
    count = _hash(data, words, lengths)
    return words[:count], lengths[:count]


@compiled
def _hash(data, words, lengths):
    count = 0
    begin = 0
    while begin < len(data):
        word = _OFFSET
        length = 0
        end = begin
        while end < len(data) and data[end] != 32:
            word = (word ^ np.uint64(data[end])) * _PRIME
            length += (data[end] & 0xC0) != 0x80  # continuation bytes of UTF-8 do not count
            end += 1
        words[count] = mixed(word)
        lengths[count] = length
        count += 1
        begin = end + 1
    return count


@compiled
def _slot(slots, grams, code):
    """Return the slot of an n-gram, or the empty slot where it belongs."""
    mask = len(slots) - 1
    slot = np.int64(code & np.uint64(mask))
    while slots[slot] > 0 and grams[slots[slot] - 1] != code:
        slot = (slot + 1) & mask
    return slot


@compiled
def _table(entries):
    size = 16
    while size < 2 * entries:
        size *= 2
    return np.zeros(size, np.int64)


@compiled
def _top_characters(grams, lengths, n, gap):
    """Return the characters of the most frequent n-gram, spaces included; of a tie, the first."""
    slots = _table(len(grams))
    counts = np.zeros(len(slots), np.int64)
    most = 0
    for i in range(len(grams)):
        slot = _slot(slots, grams, grams[i])
        if slots[slot] == 0:
            slots[slot] = i + 1
        counts[slot] += 1
        most = max(most, counts[slot])
    first = len(grams)
    for slot in range(len(slots)):
        if counts[slot] == most:
            first = min(first, slots[slot] - 1)
    return most * (lengths[first : first + n].sum() + gap * (n - 1))


@compiled
def _repeated_characters(grams, lengths, n):
    """Return the characters of n-grams that occurred before, each counted once, without spaces."""
    slots = _table(len(grams))
    characters = 0
    i = 0
    while i < len(grams):
        slot = _slot(slots, grams, grams[i])
        if slots[slot] > 0:
            characters += lengths[i : i + n].sum()
            i += n
        else:
            slots[slot] = i + 1
            i += 1
    return characters
