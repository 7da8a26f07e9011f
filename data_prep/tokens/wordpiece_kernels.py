"""The compiled inner loops of :mod:`data_prep.tokens.wordpiece`: bytes -> words -> ids.

All compiled code is in this file on purpose: numba's cache on disk depends on the file of the outer
function only, so a changed helper elsewhere would leave stale machine code in use. The tables are
described in wordpiece_tables.py.
"""

from __future__ import annotations

import numpy as np

from bertds.system.numba_jit import compiled
from data_prep.tokens.wordpiece_tables import END, LETTER, OPAQUE, PUNCTUATION, SHORT_BYTES, SPACE

OFFSET = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
PRIME = np.uint64(0x100000001B3)
SHIFT = np.uint64(29)
_MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_HALF, _LOWER_HALF = np.uint64(32), np.uint64((1 << 32) - 1)
_LENGTH_SHIFT = np.uint64(56)
# A value in a row of ``short`` is shifted by this, so that 0 means an empty row.
_VALUE_SHIFT = 1 << 32
_GENERAL_PUNCTUATION = (0xE2, 0x80)
_FIRST_OF_TWO, _LAST_OF_TWO = 0xC2, 0xDF  # range of the first byte of two-byte characters


@compiled
def hash_bytes(text, begin, end, lower):
    """Return the hash of ``text[begin:end]`` as ``lower`` maps its bytes."""
    word = OFFSET
    for i in range(begin, end):
        word = (word ^ np.uint64(lower[text[i]])) * PRIME
    return word ^ (word >> SHIFT)


@compiled
def find_bytes(table, text, begin, end, lower, code):
    """Return the entry of ``text[begin:end]``, or -1 - slot for the free slot to insert it in."""
    mask = len(table.slots) - 1
    slot = np.int64(code & np.uint64(mask))
    while True:
        stored = table.slots[slot]
        if stored == 0:
            return -1 - slot
        entry = np.int64(stored & _LOWER_HALF) - 1
        if stored >> _HALF == code >> _HALF and table.sizes[entry] == end - begin:
            start = table.starts[entry]
            same = True
            for i in range(end - begin):
                if table.arena[start + i] != lower[text[begin + i]]:
                    same = False
                    break
            if same:
                return entry
        slot = (slot + 1) & mask


@compiled
def insert_bytes(table, text, begin, end, lower, code, slot, value):
    """Add ``text[begin:end]``, which must not be in the table."""
    entry, at = table.used[0], table.used[1]
    table.slots[slot] = (code >> _HALF << _HALF) | np.uint64(entry + 1)
    table.starts[entry] = at
    table.sizes[entry] = end - begin
    table.values[entry] = value
    for i in range(end - begin):
        table.arena[at + i] = lower[text[begin + i]]
    table.used[0], table.used[1] = entry + 1, at + end - begin


@compiled
def fill(table, text, ends, values, same):
    """Insert the strings of ``text`` that end at ``ends``, all different; ``same`` is identity."""
    begin = 0
    for number in range(len(ends)):
        end = ends[number]
        code = hash_bytes(text, begin, end, same)
        slot = -1 - find_bytes(table, text, begin, end, same, code)
        insert_bytes(table, text, begin, end, same, code, slot, values[number])
        begin = end


@compiled
def _pieces(text, begin, end, lower, words, ids, at, codes):
    """Write the WordPiece ids of a normalized word to ``ids[at:]``; return their number.

    Greedy longest match, by bytes. A token consists of whole characters, so no match can end inside
    a character.
    """
    count = 0
    start = begin
    while start < end:
        tokens = words.firsts if start == begin else words.rests
        # Compute the hashes of all prefixes in one pass, then try from the longest to the shortest.
        reach = min(end - start, words.longest)
        code = OFFSET
        for i in range(reach):
            code = (code ^ np.uint64(lower[text[start + i]])) * PRIME
            codes[i] = code ^ (code >> SHIFT)
        number = -1
        while reach > 0:
            code = codes[reach - 1]
            entry = find_bytes(tokens, text, start, start + reach, lower, code)
            if entry >= 0:
                number = tokens.values[entry]
                break
            reach -= 1
        if number < 0:  # no piece matches: the whole word is unknown
            ids[at] = words.unknown
            return 1
        ids[at + count] = number
        count += 1
        start += reach
    return count


@compiled
def _normal_form(text, begin, end, table, out):
    """Write a word's normal form to ``out``; return its bytes, or 0 if only tokenizers knows it."""
    size = 0
    i = begin
    while i < end:
        byte = text[i]
        if table.kinds[byte] == LETTER:
            if size == len(out):
                return 0
            out[size] = table.lower[byte]
            size += 1
            i += 1
            continue
        if byte < _FIRST_OF_TWO or byte > _LAST_OF_TWO or i + 1 >= end:
            return 0
        number = (np.int64(byte) & 0x1F) * 64 + (np.int64(text[i + 1]) & 0x3F) - 0x80
        start = table.pair_ends[number - 1] if number > 0 else 0
        stop = table.pair_ends[number]
        if start == stop or size + stop - start > len(out):
            return 0
        for k in range(start, stop):
            out[size] = table.pair_text[k]
            size += 1
        i += 2
    return size


@compiled
def _characters(text, size):
    count = 0
    for i in range(size):
        count += (text[i] & 0xC0) != 0x80
    return count


@compiled
def _new_value(
    text, begin, end, clean, table, longest_word, cache, words, codes, form, opaque, opaques
):
    """Return the value of a new word, and whether its ids are known; else add it to ``opaque``."""
    at = cache.used[2]
    known = clean
    size = 0
    if clean:
        size = _pieces(text, begin, end, table.lower, words, cache.ids, at, codes)
    else:
        length = _normal_form(text, begin, end, table, form)
        if length > 0:
            known = True
            if _characters(form, length) > longest_word:
                return np.int64(words.unknown), True
            size = _pieces(form, 0, length, table.same, words, cache.ids, at, codes)
    if known and size == 1:
        return np.int64(cache.ids[at]), True
    entry = cache.used[1]
    if not known:
        opaque[opaques, 0] = entry
        opaque[opaques, 1] = begin
        opaque[opaques, 2] = end
    cache.id_starts[entry] = at
    cache.id_sizes[entry] = size
    cache.used[1] = entry + 1
    cache.used[2] = at + size
    return np.int64(-1 - entry), known


@compiled
def _is_full(cache, size):
    """Return whether ``size`` more bytes of text might not fit into the cache."""
    return (
        cache.used[0] + size > len(cache.id_starts)
        or cache.used[1] + size > len(cache.id_starts)
        or cache.used[2] + size > len(cache.ids)
        or cache.long.used[0] + size // SHORT_BYTES + 1 > len(cache.long.starts)
        or cache.long.used[1] + size > len(cache.long.arena)
    )


@compiled
def scan(text, table, longest_word, cache, words, values, word_ends, opaque):
    """Find the value of every word; add new words, with their ids if they can be found here.

    Args:
        text: uint8, sentences, each ended by a line feed.
        table: a :class:`Bytes`.
        longest_word: longer words are [UNK].
        cache: words seen before.
        words: the vocabulary.
        values: int32 output, with room for one value per byte of text; see wordpiece_tables.py.
        word_ends: int64 output [sentences], exclusive.
        opaque: int32 output [bytes, 3]: entry, begin and end in ``text`` of new words whose ids the
            caller must find, because of characters of three or more bytes, or unusual ones.

    Returns:
        Number of sentences done (fewer than all if the cache is full), of bytes done, and of opaque
        words.
    """
    count = 0
    opaques = 0
    position = 0
    sentence = 0
    kinds = table.kinds
    codes = np.empty(words.longest + 1, np.uint64)
    form = np.empty(4 * longest_word, np.uint8)
    while position < len(text):
        # Stop between sentences if the next one might not fit: the caller empties the cache.
        if _is_full(cache, len(text) - position):
            end = position
            while kinds[text[end]] != END:
                end += 1
            if _is_full(cache, end - position):
                break
        while True:
            begin = position
            byte = text[position]
            kind = kinds[byte]
            position += 1
            if kind == SPACE:
                continue
            if kind == END:
                break
            if kind == PUNCTUATION:
                values[count] = table.ids[byte]
                count += 1
                continue
            # A word: its bytes are packed into two numbers while they are read.
            low = np.uint64(0)
            high = np.uint64(0)
            position = begin
            while kind == LETTER:
                letter = np.uint64(table.lower[byte])
                size = position - begin
                if size < 8:
                    low |= letter << np.uint64(8 * size)
                elif size < SHORT_BYTES:
                    high |= letter << np.uint64(8 * (size - 8))
                position += 1
                byte = text[position]
                kind = kinds[byte]
            clean = True
            # A byte beyond ASCII: a mark between words, or a letter that makes the word "not
            # clean".
            if kind == OPAQUE:
                mark = _mark(text, position, table.mark_ids)
                if mark >= 0 and position == begin:
                    values[count] = mark
                    count += 1
                    position += 3
                    continue
                if mark < 0:
                    clean = False
                    while kinds[text[position]] == LETTER or (
                        kinds[text[position]] == OPAQUE
                        and _mark(text, position, table.mark_ids) < 0
                    ):
                        position += 1
            size = position - begin
            lower = table.lower
            # Unclean words are looked up by their bytes as written, not in lower case.
            if not clean:
                lower = table.same
                low = np.uint64(0)
                high = np.uint64(0)
                for i in range(min(size, SHORT_BYTES)):
                    if i < 8:
                        low |= np.uint64(text[begin + i]) << np.uint64(8 * i)
                    else:
                        high |= np.uint64(text[begin + i]) << np.uint64(8 * (i - 8))
            elif size > longest_word:
                values[count] = words.unknown
                count += 1
                continue
            # Nearly every word is in the cache. Long words have their own table.
            is_long = size > SHORT_BYTES
            code = np.uint64(0)
            slot = np.int64(0)
            if is_long:
                code = hash_bytes(text, begin, position, lower)
                slot = find_bytes(cache.long, text, begin, position, lower, code)
                if slot >= 0:
                    values[count] = cache.long.values[slot]
                    count += 1
                    continue
            else:
                high |= np.uint64(size) << _LENGTH_SHIFT
                slot = _short_slot(cache.short, low, high)
                stored = cache.short[slot, 2]
                if stored != 0:
                    values[count] = np.int64(stored) - _VALUE_SHIFT
                    count += 1
                    continue
            value, known = _new_value(
                text,
                begin,
                position,
                clean,
                table,
                longest_word,
                cache,
                words,
                codes,
                form,
                opaque,
                opaques,
            )
            opaques += not known
            if is_long:
                insert_bytes(cache.long, text, begin, position, lower, code, -1 - slot, value)
            else:
                cache.short[slot, 0] = low
                cache.short[slot, 1] = high
                cache.short[slot, 2] = np.uint64(value + _VALUE_SHIFT)
                cache.used[0] += 1
            values[count] = value
            count += 1
        word_ends[sentence] = count
        sentence += 1
    return sentence, position, opaques


@compiled
def _short_slot(short, low, high):
    """Return the row of a word of up to ``SHORT_BYTES`` bytes, or the free row for it."""
    mask = np.uint64(len(short) - 1)
    code = (low * _MIX_1) ^ (high * _MIX_2)
    code = (code ^ (code >> _HALF)) * _MIX_1
    slot = np.int64((code >> _HALF) & mask)
    while short[slot, 2] != 0 and (short[slot, 0] != low or short[slot, 1] != high):
        slot = np.int64(np.uint64(slot + 1) & mask)
    return slot


@compiled
def _mark(text, position, mark_ids):
    """Return the id of the punctuation mark E2 80 xx at ``position``, or -1."""
    if (
        text[position] == _GENERAL_PUNCTUATION[0]
        and position + 2 < len(text)
        and text[position + 1] == _GENERAL_PUNCTUATION[1]
    ):
        return np.int64(mark_ids[text[position + 2]])
    return np.int64(-1)


@compiled
def count_ids(values, word_ends, id_sizes, lengths):
    """Write the number of tokens of each sentence to ``lengths``; return the total."""
    total = 0
    word = 0
    for sentence in range(len(word_ends)):
        own = 0
        while word < word_ends[sentence]:
            value = values[word]
            own += 1 if value >= 0 else id_sizes[-1 - value]
            word += 1
        lengths[sentence] = own
        total += own
    return total


@compiled
def gather(values, count, id_starts, id_sizes, ids, out):
    """Write the ids of all words to ``out``, one after the other."""
    at = 0
    for word in range(count):
        value = values[word]
        if value >= 0:
            out[at] = value
            at += 1
            continue
        entry = -1 - value
        start = id_starts[entry]
        for i in range(id_sizes[entry]):
            out[at + i] = ids[start + i]
        at += id_sizes[entry]
