"""The algorithms of bertds.data in plain Python, and Google's, to compare with.

``scan`` and ``make_row`` are the twins of the compiled loops in bertds/data/samples/kernels.py:
written for reading, slow, with the same draws. ``google_instances`` follows the published
algorithm (sentence lists, ``random.Random``, token by token), knows nothing of ours, and must
agree in distribution.
"""

from __future__ import annotations

import itertools

from bertds.data.rng import CHUNKS, ROWS, below, derive_key, random_u64


def documents_of(shard):
    """Return a shard as documents of sentences of tokens."""
    tokens = shard.token_ids.tolist()
    sentences = shard.sentence_offsets.tolist()
    documents = shard.document_offsets.tolist()
    return [
        [tokens[sentences[s] : sentences[s + 1]] for s in range(first, last)]
        for first, last in itertools.pairwise(documents)
    ]


class Draws:
    """One stream; ``word(i)`` is draw i, ``next()`` the following one."""

    def __init__(self, key, start=0):
        self.key, self.counter = key, start

    def word(self, counter):
        return random_u64(self.key, counter)

    def next(self):
        self.counter += 1
        return random_u64(self.key, self.counter - 1)


def scan(documents, others, same, *, seed, epoch, shard_number, settings):
    """Return (A, B, label) triples of token lists, untruncated."""
    shard_key = derive_key(seed, CHUNKS, epoch, shard_number)
    samples = []
    for number, document in enumerate(documents):
        draws = Draws(random_u64(shard_key, number))
        target = settings.max_tokens
        if draws.word(0) >> 32 < round(settings.short_seq_prob * 2**32):
            target = 2 + below(draws.word(1), settings.max_tokens - 1)
        position, chunk_number = 0, 0
        while position < len(document):
            chunk = []
            while position + len(chunk) < len(document) and length(chunk) < target:
                chunk.append(document[position + len(chunk)])
            first = 2 + 4 * chunk_number
            chunk_number += 1
            a_end = 1
            if len(chunk) > 1:
                a_end = 1 + below(draws.word(first), len(chunk) - 1)
            coin = draws.word(first + 1) >> 63 == 0
            a, b, label, used = join(chunk[:a_end]), join(chunk[a_end:]), 0, len(chunk)
            if settings.pairs == "none":
                a, b = join(chunk), []
            elif settings.pairs == "sop":
                if len(chunk) == 1:
                    if len(chunk[0]) < 2:
                        position += used
                        continue
                    cut = 1 + below(draws.word(first + 2), len(chunk[0]) - 1)
                    a, b = chunk[0][:cut], chunk[0][cut:]
                if coin:
                    a, b, label = b, a, 1
            elif len(chunk) == 1 or coin:
                label, used = 1, a_end
                choices = [n for n in range(len(others)) if not (same and n == number)]
                other = others[choices[below(draws.word(first + 2), len(choices))]]
                start = below(draws.word(first + 3), len(other))
                b = []
                for sentence in other[start:]:
                    b = b + sentence
                    if len(b) >= target - len(a):
                        break
            samples.append((a, b, label))
            position += used
    return samples


def length(chunk):
    return sum(len(sentence) for sentence in chunk)


def join(chunk):
    return [token for sentence in chunk for token in sentence]


def make_row(sample, *, seed, epoch, shard_number, sample_number, settings, tokenizer):
    """Return ids (masked), segments, masked positions and original ids of one row."""
    a, b, _ = sample
    draws = Draws(random_u64(derive_key(seed, ROWS, epoch, shard_number), sample_number))
    # How many pops each segment suffers, then how many of these in front: 64 coins a word.
    kept_a, kept_b = len(a), len(b)
    while kept_a + kept_b > settings.max_tokens:
        if kept_a > kept_b:
            kept_a -= 1
        else:
            kept_b -= 1
    if len(a) + len(b) > settings.max_tokens:
        a = lose(a, kept_a, draws)
        b = lose(b, kept_b, draws)
    special = tokenizer.special_ids
    ids = [special["cls"], *a, special["sep"]]
    segments = [0] * len(ids)
    if b:
        ids += [*b, special["sep"]]
        segments += [1] * (len(b) + 1)
    wanted = min(settings.max_predictions, max(1, int(round(settings.masked_lm_prob * len(ids)))))  # noqa: RUF046
    candidates = [i for i in range(1, len(ids) - 1) if i != len(a) + 1]
    wanted = min(wanted, len(candidates))
    if settings.whole_word_masking or settings.ngram > 1:
        chosen = choose_words(ids, candidates, wanted, draws, settings.ngram, tokenizer)
    else:
        chosen, remaining = [], len(candidates)
        for position in candidates:
            if len(chosen) == wanted:
                break
            if below(draws.next(), remaining) < wanted - len(chosen):
                chosen.append(position)
            remaining -= 1
    original = [ids[position] for position in chosen]
    for position in chosen:
        word = draws.next()
        if word >> 32 < round(0.8 * 2**32):
            ids[position] = special["mask"]
        elif word >> 32 >= round(0.9 * 2**32):
            ids[position] = ((word & 0xFFFFFFFF) * tokenizer.vocab_size) >> 32
    return ids, segments, chosen, original


def lose(segment, kept, draws):
    front, trials = 0, len(segment) - kept
    while trials > 0:
        front += (draws.next() & ((1 << min(trials, 64)) - 1)).bit_count()
        trials -= 64
    return segment[front : front + kept]


def choose_words(ids, candidates, wanted, draws, ngram, tokenizer):
    continues = tokenizer.continuation_pieces()
    words = []
    for position in candidates:
        if words and position == words[-1][-1] + 1 and continues[ids[position]]:
            words[-1].append(position)
        else:
            words.append([position])
    weights = [1 / k for k in range(1, ngram + 1)]
    limits = [round(sum(weights[:k]) / sum(weights) * 2**32) for k in range(1, ngram)] + [2**32]
    order = list(range(len(words)))
    chosen: set[int] = set()
    for turn in range(len(words)):
        if len(chosen) >= wanted:
            break
        swap = turn + below(draws.next(), len(words) - turn)
        order[turn], order[swap] = order[swap], order[turn]
        first, run = order[turn], 1
        if ngram > 1:
            high = draws.next() >> 32
            run = next(k for k, limit in enumerate(limits, start=1) if high < limit)
        for size in range(run, 0, -1):
            pieces = join(words[first : first + size])
            whole = first + size <= len(words) and pieces[-1] - pieces[0] == len(pieces) - 1
            if whole and len(chosen) + len(pieces) <= wanted:
                if not chosen & set(pieces):
                    chosen |= set(pieces)
                break
    return sorted(chosen)


def google_instances(documents, max_seq_length, short_seq_prob, max_predictions, prob, rng):
    """Instances by Google's ``create_pretraining_data.py`` (REFERENCE: the instance algorithm).

    Yields (tokens_a, tokens_b, is_random, number of masked positions).
    """
    for number, document in enumerate(documents):
        max_num_tokens = max_seq_length - 3
        target_seq_length = max_num_tokens
        if rng.random() < short_seq_prob:
            target_seq_length = rng.randint(2, max_num_tokens)
        current_chunk, current_length, i = [], 0, 0
        while i < len(document):
            current_chunk.append(document[i])
            current_length += len(document[i])
            if i == len(document) - 1 or current_length >= target_seq_length:
                a_end = 1
                if len(current_chunk) >= 2:
                    a_end = rng.randint(1, len(current_chunk) - 1)
                tokens_a = join(current_chunk[:a_end])
                tokens_b = []
                is_random = len(current_chunk) == 1 or rng.random() < 0.5
                if is_random:
                    target_b_length = target_seq_length - len(tokens_a)
                    for _ in range(10):
                        other = rng.randint(0, len(documents) - 1)
                        if other != number:
                            break
                    random_document = documents[other]
                    start = rng.randint(0, len(random_document) - 1)
                    for sentence in random_document[start:]:
                        tokens_b.extend(sentence)
                        if len(tokens_b) >= target_b_length:
                            break
                    i -= len(current_chunk) - a_end
                else:
                    tokens_b = join(current_chunk[a_end:])
                while len(tokens_a) + len(tokens_b) > max_num_tokens:
                    longer = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
                    if rng.random() < 0.5:
                        del longer[0]
                    else:
                        longer.pop()
                row = len(tokens_a) + len(tokens_b) + 3
                masked = min(max_predictions, max(1, int(round(row * prob))))  # noqa: RUF046
                yield tokens_a, tokens_b, is_random, masked
                current_chunk, current_length = [], 0
            i += 1
