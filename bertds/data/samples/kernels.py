"""The compiled loops: sentences to samples (:func:`scan`), samples to rows (:func:`assemble`).

All compiled code is in this file on purpose: numba's cache on disk depends on the file of the outer
function only, so a changed helper elsewhere would leave stale machine code in use. Each loop has a
plain-Python twin in tests/support/reference_rows.py that gives identical results.

uint64 and int64 values are never mixed in an expression: numba would convert both to float.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np

from bertds.data.rng import GAMMA, M1, M2, probability_threshold
from bertds.system.numba_jit import compiled

NSP, SOP, ONE_SEGMENT = 0, 1, 2
DRAWS_BEFORE_CHUNKS, DRAWS_PER_CHUNK = 2, 4

_GAMMA_U64, _M1_U64, _M2_U64 = np.uint64(GAMMA), np.uint64(M1), np.uint64(M2)
_ONE, _2, _4, _27, _30, _31, _32, _56, _63 = (
    np.uint64(n) for n in (1, 2, 4, 27, 30, 31, 32, 56, 63)
)
_64 = np.int64(64)
_LOW = np.uint64((1 << 32) - 1)
_55, _33, _0F, _01 = (
    np.uint64(n)
    for n in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
)
MASK_BELOW = np.uint64(probability_threshold(0.8))
KEEP_BELOW = np.uint64(probability_threshold(0.9))


@numba.njit(inline="always")
def jit_u64(key, counter):
    """Compiled :func:`random_u64`; both arguments must be uint64."""
    word = key + (counter + _ONE) * _GAMMA_U64
    word = (word ^ (word >> _30)) * _M1_U64
    word = (word ^ (word >> _27)) * _M2_U64
    return word ^ (word >> _31)


@numba.njit(inline="always")
def jit_below(word, limit):
    """Compiled :func:`below`."""
    return np.int64(((word >> _32) * np.uint64(limit)) >> _32)


@compiled
def scan(
    sentences,
    documents,
    other_sentences,
    other_documents,
    same,
    shard_key,
    kind,
    max_tokens,
    short_below,
    a_begin,
    a_length,
    b_begin,
    b_length,
    labels,
):
    """Divide documents into samples; see pairing.py. With empty outputs it only counts.

    Random draws of a document's stream: 0 and 1 decide the target length. Each chunk then has four
    (end of segment A, coin, other document or cut, first sentence there), used or not.
    """
    keep = len(labels) > 0
    count = 0
    for document in range(len(documents) - 1):
        key = jit_u64(shard_key, np.uint64(document))
        target = max_tokens
        if (jit_u64(key, np.uint64(0)) >> _32) < short_below:
            target = 2 + jit_below(jit_u64(key, np.uint64(1)), max_tokens - 1)
        draw = DRAWS_BEFORE_CHUNKS - DRAWS_PER_CHUNK
        begin = documents[document]
        document_end = documents[document + 1]
        while begin < document_end:
            draw += DRAWS_PER_CHUNK
            start = sentences[begin]
            # Gather sentences until the target length is reached; the last one may exceed it.
            end = begin + 1
            while end < document_end and sentences[end] - start < target:
                end += 1
            # Segment A: a random number of the first sentences, but never all of them.
            gathered = end - begin
            a_end = begin + 1
            if gathered > 1:
                a_end += jit_below(jit_u64(key, np.uint64(draw)), gathered - 1)
            coin = (jit_u64(key, np.uint64(draw + 1)) >> _63) == np.uint64(0)
            a0, a1 = start, sentences[a_end]
            b0, b1 = a1, sentences[end]
            label = 0
            following = end
            if kind == ONE_SEGMENT:
                a1 = b1
                b0 = b1
            elif kind == SOP:
                if gathered == 1:
                    if a1 - a0 < 2:  # a single token cannot be divided
                        begin = following
                        continue
                    cut = a0 + 1 + jit_below(jit_u64(key, np.uint64(draw + 2)), a1 - a0 - 1)
                    a1, b0, b1 = cut, cut, sentences[end]
                if coin:
                    label = 1
                    a0, a1, b0, b1 = b0, b1, a0, a1
            elif gathered == 1 or coin:
                label = 1
                following = a_end  # the unused sentences go back to the document
                # Draw another document: all but this one if it is in the same shard.
                choices = len(other_documents) - 1 - (1 if same else 0)
                chosen = jit_below(jit_u64(key, np.uint64(draw + 2)), choices)
                if same and chosen >= document:
                    chosen += 1
                # Segment B begins at a random sentence and fills the rest of the target length.
                first = other_documents[chosen]
                last = other_documents[chosen + 1]
                first += jit_below(jit_u64(key, np.uint64(draw + 3)), last - first)
                b0 = other_sentences[first]
                wanted = target - (a1 - a0)
                stop = first + 1
                while stop < last and other_sentences[stop] - b0 < wanted:
                    stop += 1
                b1 = other_sentences[stop]
            if keep:
                a_begin[count] = a0
                a_length[count] = a1 - a0
                b_begin[count] = b0
                b_length[count] = b1 - b0
                labels[count] = label
            count += 1
            begin = following
    return count


@numba.njit(inline="always")
def jit_choose_tokens(key, draw, start, first_end, end, special, wanted, positions, out):
    """Choose ``wanted`` positions of row ``[start, end)``; write them to ``positions[out:]``.

    ``first_end`` is the position of the [SEP] in the middle (or the last one). Selection sampling
    (Knuth, Algorithm S) takes each candidate with probability needed / remaining, so the result is
    ascending and a uniform subset. Returns the counter of the next draw.
    """
    remaining = end - start - special
    needed = wanted
    for position in range(start + 1, end - 1):
        if needed == 0:
            break
        if position == first_end:
            continue
        taken = jit_below(jit_u64(key, draw), remaining) < needed
        draw += _ONE
        remaining -= 1
        positions[out] = position  # overwritten by the next candidate unless taken
        out += taken
        needed -= taken
    return draw


@numba.njit(inline="always")
def jit_choose_words(
    key, draw, start, first_end, end, wanted, ids, inside, ngram, order, begins, positions, out
):
    """Choose whole words of up to ``wanted`` pieces together; see masking.py.

    ``inside[position - start]`` is whether a token continues the word before it. ``order`` and
    ``begins`` are int64 scratch arrays of at least ``end - start`` + 1 entries. Returns the counter
    of the next draw and the number of positions written.
    """
    # Where words begin. The first token of a segment begins one even if it is a `##` piece.
    words = 0
    for position in range(start + 1, end - 1):
        if position == first_end:
            continue
        opens = position == start + 1 or position == first_end + 1
        if opens or not inside[position - start]:
            begins[words] = position
            order[words] = words
            words += 1
    chosen = 0
    # Take words in random order (a Fisher-Yates shuffle, as far as it is needed).
    for turn in range(words):
        if chosen >= wanted:
            break
        swap = turn + jit_below(jit_u64(key, draw), words - turn)
        draw += _ONE
        word = order[swap]
        order[swap] = order[turn]
        order[turn] = word
        run = 1
        if len(ngram) > 1:
            high = jit_u64(key, draw) >> _32
            draw += _ONE
            while high >= ngram[run - 1]:
                run += 1
        # Shorten the run until it is in one segment, inside the row, and within `wanted`.
        pieces = 0
        while run > 0:
            last = word + run - 1
            if last < words:
                segment_end = first_end if begins[word] < first_end else end - 1
                stop = begins[last + 1] if last + 1 < words else end - 1
                stop = min(stop, segment_end)
                if begins[last] < segment_end:
                    pieces = stop - begins[word]
                    if chosen + pieces <= wanted:
                        break
            run -= 1
        if run == 0:
            continue
        # Skip a run that contains a chosen word. The ids of chosen words are negated as a mark.
        free = True
        for other in range(word, word + run):
            free = free and ids[begins[other]] >= 0
        if not free:
            continue
        for position in range(begins[word], begins[word] + pieces):
            ids[position] = -1 - ids[position]
        chosen += pieces
    # Remove the marks and write the positions in ascending order.
    for position in range(start + 1, end - 1):
        if ids[position] < 0:
            ids[position] = -1 - ids[position]
            positions[out] = position
            out += 1
    return draw, chosen


@numba.njit(inline="always")
def jit_replace(key, draw, ids, positions, masked_ids, begin, count, mask_id, vocab_size):
    """Store the original ids of the chosen positions and corrupt the row 80 / 10 / 10."""
    for number in range(begin, begin + count):
        position = positions[number]
        masked_ids[number] = ids[position]
        word = jit_u64(key, draw)
        draw += _ONE
        high = word >> _32
        if high < MASK_BELOW:
            ids[position] = mask_id
        elif high >= KEEP_BELOW:
            ids[position] = np.int64(((word & _LOW) * np.uint64(vocab_size)) >> _32)


@numba.njit(inline="always")
def _binomial_half(key, draw, trials):
    """Return the number of heads of ``trials`` fair coins, 64 at a time, and the next draw."""
    heads = np.int64(0)
    while trials > 0:
        word = jit_u64(key, draw)
        draw += _ONE
        if trials < _64:  # use only the bits that are needed, then count the ones
            word &= (_ONE << np.uint64(trials)) - _ONE
        word -= (word >> _ONE) & _55
        word = (word & _33) + ((word >> _2) & _33)
        word = (word + (word >> _4)) & _0F
        heads += np.int64((word * _01) >> _56)
        trials -= _64
    return heads, draw


@compiled
def assemble(
    tokens_a,
    tokens_b,
    starts_a,
    starts_b,
    a_begin,
    a_length,
    b_begin,
    b_length,
    labels,
    shard_key,
    rows,
    samples,
    row_offsets,
    mask_offsets,
    input_ids,
    segment_ids,
    position_ids,
    masked_positions,
    masked_ids,
    masked_counts,
    max_tokens,
    cls,
    sep,
    mask_id,
    vocab_size,
    whole_words,
    continues,
    ngram,
):
    """Write samples of one shard as rows ``rows`` of a flat batch; see flat_rows.py.

    Returns -1, or the row in which a token id is not below ``vocab_size``.
    """
    order = np.empty(max_tokens + 4, np.int64)
    begins = np.empty(max_tokens + 4, np.int64)
    inside = np.empty(max_tokens + 4, np.bool_)
    for number in range(len(rows)):
        row, sample = rows[number], samples[number]
        key = jit_u64(shard_key, np.uint64(sample))
        draw = np.uint64(0)
        a0, a = a_begin[sample], np.int64(a_length[sample])
        b0, b = b_begin[sample], np.int64(b_length[sample])

        # Truncation: the longer segment (B if equal) loses its first or last token, by a fair coin,
        # until both fit. Only the counts matter: how many each loses, and how many in front.
        excess = a + b - max_tokens
        if excess > 0:
            if a <= (max_tokens + 1) // 2:
                a_kept = a
            elif b <= max_tokens // 2:
                a_kept = max_tokens - b
            else:
                a_kept = (max_tokens + 1) // 2
            b_kept = max_tokens - a_kept
            front, draw = _binomial_half(key, draw, a - a_kept)
            a0 += front
            front, draw = _binomial_half(key, draw, b - b_kept)
            b0 += front
            a, b = a_kept, b_kept

        start, end = row_offsets[row], row_offsets[row + 1]
        largest = np.int64(0)
        input_ids[start] = cls
        for i in range(a):
            token = np.int64(tokens_a[a0 + i])
            largest = max(largest, token)
            input_ids[start + 1 + i] = token
        first_end = start + 1 + a
        input_ids[first_end] = sep
        if b > 0:
            # A true next segment is in the same shard as the first one.
            second = tokens_b if labels[sample] == 1 else tokens_a
            for i in range(b):
                token = np.int64(second[b0 + i])
                largest = max(largest, token)
                input_ids[first_end + 1 + i] = token
            input_ids[end - 1] = sep
        if largest >= vocab_size:
            return row
        for i in range(start, end):
            segment_ids[i] = np.int64(i > first_end)
            position_ids[i] = i - start

        out = mask_offsets[row]
        wanted = mask_offsets[row + 1] - out
        if whole_words and len(starts_a) > 0:
            # Other tokenizers: the shards have one bit per token that begins a word.
            for i in range(a):
                inside[1 + i] = not (starts_a[(a0 + i) >> 3] >> ((a0 + i) & 7)) & 1
            starts_of_b = starts_b if labels[sample] == 1 else starts_a
            for i in range(b):
                place = first_end - start + 1 + i
                inside[place] = not (starts_of_b[(b0 + i) >> 3] >> ((b0 + i) & 7)) & 1
        elif whole_words:
            for i in range(start, end):
                inside[i - start] = continues[input_ids[i]]
        if whole_words:
            draw, chosen = jit_choose_words(
                key,
                draw,
                start,
                first_end,
                end,
                wanted,
                input_ids,
                inside,
                ngram,
                order,
                begins,
                masked_positions,
                out,
            )
        else:
            special = 3 if b > 0 else 2
            draw = jit_choose_tokens(
                key, draw, start, first_end, end, special, wanted, masked_positions, out
            )
            chosen = wanted
        jit_replace(
            key, draw, input_ids, masked_positions, masked_ids, out, chosen, mask_id, vocab_size
        )
        masked_counts[row] = chosen
    return -1
