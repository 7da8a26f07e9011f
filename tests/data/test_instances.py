from __future__ import annotations

import random
import time
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest

from bertds.config.row_settings import RowSettings
from bertds.data.formats.token_shards import TokenShard
from bertds.data.samples.flat_rows import RowMaker, build_instances
from bertds.data.samples.masking import predictions_by_length
from bertds.data.samples.pairing import count_shard, partner_number, scan_shard
from bertds.errors import ConfigError, DataError

SETTINGS = [
    RowSettings(sequence_length=length, max_predictions=5, pairs=pairs, **masking)
    for length, pairs, masking in product(
        (7, 32, 64),
        ("nsp", "sop", "none"),
        ({}, {"whole_word_masking": True}, {"ngram": 3}),
    )
]


def test_numbers_of_masks_worked_by_hand():
    """round(0.9 n), but at least one, at most 20, and never a special token."""
    assert predictions_by_length(8, 3, 0.9, 20).tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    found = predictions_by_length(128, 3, 0.15, 18)
    assert [found[n] for n in (4, 9, 10, 11, 17, 30, 118, 128)] == [1, 1, 2, 2, 3, 4, 18, 18]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("documents", [2, 40])
def test_compiled_equals_plain_python_bit_for_bit(
    settings, documents, make_shard, reference, tokenizer
):
    shard = make_shard(documents, seed=documents)
    place = {"seed": 5, "epoch": 3, "shard_number": 2}
    pairs = scan_shard(shard, shard, settings=settings, **place)
    plain = reference.documents_of(shard)
    expected = reference.scan(plain, plain, True, settings=settings, **place)
    assert pairs.size == len(expected) == count_shard(shard, shard, settings=settings, **place)
    for i, (a, b, label) in enumerate(expected):
        a0, b0 = pairs.a_begin[i], pairs.b_begin[i]
        assert shard.token_ids[a0 : a0 + pairs.a_length[i]].tolist() == a
        assert shard.token_ids[b0 : b0 + pairs.b_length[i]].tolist() == b
        assert pairs.labels[i] == label

    flat = RowMaker(settings, tokenizer, 5).make([pairs], [2], None, np.arange(pairs.size), 3)
    for i, sample in enumerate(expected):
        ids, segments, positions, original = reference.make_row(
            sample,
            seed=5,
            epoch=3,
            shard_number=2,
            sample_number=i,
            settings=settings,
            tokenizer=tokenizer,
        )
        row = slice(flat.row_offsets[i], flat.row_offsets[i + 1])
        masks = slice(flat.mask_offsets[i], flat.mask_offsets[i + 1])
        assert flat.input_ids[row].tolist() == ids
        assert flat.segment_ids[row].tolist() == segments
        assert flat.position_ids[row].tolist() == list(range(len(ids)))
        assert (flat.masked_positions[masks] - row.start).tolist() == positions
        assert flat.masked_ids[masks].tolist() == original


def test_rows_of_several_shards_are_in_the_requested_order(make_shard, tokenizer):
    settings = RowSettings(sequence_length=32, max_predictions=5)
    shards = [make_shard(9, seed=n) for n in range(3)]
    parts = [
        scan_shard(s, s, shard_number=n, epoch=0, seed=1, settings=settings)
        for n, s in enumerate(shards)
    ]
    maker = RowMaker(settings, tokenizer, 1)
    order = random.Random(0).sample([(n, i) for n in range(3) for i in range(parts[n].size)], 40)
    part, sample = (np.array(column) for column in zip(*order))
    together = maker.make(parts, [0, 1, 2], part, sample, 0)
    for row, (n, i) in enumerate(order):
        alone = maker.make([parts[n]], [n], None, np.array([i]), 0)
        span = slice(together.row_offsets[row], together.row_offsets[row + 1])
        assert together.input_ids[span].tolist() == alone.input_ids.tolist()
        assert together.labels[row] == alone.labels[0]


def test_label_one_is_a_truly_different_document_and_near_one_half(make_shard):
    settings = RowSettings(sequence_length=64)
    shard = make_shard(400, mean_sentences=30)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=1, settings=settings)
    starts = shard.sentence_offsets[shard.document_offsets]
    document_a = np.searchsorted(starts, pairs.a_begin, side="right")
    document_b = np.searchsorted(starts, pairs.b_begin, side="right")
    assert np.array_equal(pairs.labels == 1, document_a != document_b)
    follows = pairs.b_begin == pairs.a_begin + pairs.a_length
    assert follows[pairs.labels == 0].all()
    # A little above one half: chunks of one sentence have no true next one, and what a random
    # segment leaves unused is used again.
    assert 0.5 < pairs.labels.mean() < 0.58
    # Segments are on sentence borders, inside one document.
    for begin, length in ((pairs.a_begin, pairs.a_length), (pairs.b_begin, pairs.b_length)):
        assert np.isin(begin, shard.sentence_offsets).all()
        assert np.isin(begin + length, shard.sentence_offsets).all()
        last = np.searchsorted(starts, begin + length - 1, side="right")
        assert np.array_equal(last, np.searchsorted(starts, begin, side="right"))


def test_every_sentence_is_used_as_first_or_true_second_segment(make_shard):
    settings = RowSettings(sequence_length=64)
    shard = make_shard(30)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=1, settings=settings)
    seen = np.zeros(shard.tokens, np.int64)
    for i in range(pairs.size):
        seen[pairs.a_begin[i] : pairs.a_begin[i] + pairs.a_length[i]] += 1
        if not pairs.labels[i]:
            seen[pairs.b_begin[i] : pairs.b_begin[i] + pairs.b_length[i]] += 1
    assert (seen == 1).all()


def test_distribution_agrees_with_googles_algorithm(make_shard, reference):
    shard = make_shard(400, seed=3, mean_sentences=12, mean_tokens=11)
    documents = reference.documents_of(shard)
    settings = RowSettings(sequence_length=64, max_predictions=10)
    ours, theirs = [], []
    for epoch in range(6):
        pairs = scan_shard(shard, shard, shard_number=0, epoch=epoch, seed=1, settings=settings)
        a, b = pairs.a_length.astype(int), pairs.b_length.astype(int)
        for length_a, length_b, label in zip(a, b, pairs.labels, strict=True):
            while length_a + length_b > 61:
                if length_a > length_b:
                    length_a -= 1
                else:
                    length_b -= 1
            ours.append((length_a + length_b + 3, length_a, label))
        rng = random.Random(epoch)
        rows = reference.google_instances(
            [[list(s) for s in d] for d in documents], 64, 0.1, 10, 0.15, rng
        )
        theirs += [(len(a) + len(b) + 3, len(a), is_random) for a, b, is_random, _ in rows]
    ours, theirs = np.array(ours, float), np.array(theirs, float)
    assert len(ours) == pytest.approx(len(theirs), rel=0.015)
    for column in range(3):
        a, b = ours[:, column], theirs[:, column]
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        # Rows of one document are correlated, hence 5 and not 3 standard errors.
        assert abs(a.mean() - b.mean()) < 5 * error, column
        assert np.abs(np.quantile(a, [0.1, 0.5, 0.9]) - np.quantile(b, [0.1, 0.5, 0.9])).max() <= 2


def test_truncation_takes_from_both_ends_as_a_fair_coin_would(tokenizer):
    # One document of two long sentences, and another: every row is cut. Tokens are numbered.
    length = 80
    tokens = np.arange(10, 10 + 4 * length, dtype=np.uint16)
    shard = TokenShard.from_arrays("t", tokens, np.arange(5) * length, [0, 2, 4])
    settings = RowSettings(
        sequence_length=43, max_predictions=1, short_seq_prob=0.0, masked_lm_prob=0.01
    )
    wide = type(tokenizer)(
        vocab_size=400, lower_case=True, fingerprint="", special_ids=tokenizer.special_ids
    )
    fronts = []
    for epoch in range(400):
        pairs = scan_shard(shard, shard, shard_number=0, epoch=epoch, seed=1, settings=settings)
        flat = RowMaker(settings, wide, 1).make([pairs], [0], None, np.arange(pairs.size), epoch)
        flat.input_ids[flat.masked_positions] = flat.masked_ids
        for i in range(flat.rows):
            row = flat.input_ids[flat.row_offsets[i] : flat.row_offsets[i + 1]]
            if pairs.a_length[i] != length or pairs.b_length[i] != length:
                continue
            assert len(row) == 43
            a, b = row[1:21], row[22:42]
            assert np.array_equal(np.diff(a), np.ones(19)) and np.array_equal(
                np.diff(b), np.ones(19)
            )
            fronts += [(a[0] - 10) % length, (b[0] - 10) % length]
    # 60 tokens lost, each from the front with probability one half: binomial(60, 1/2).
    fronts = np.array(fronts)
    assert len(fronts) > 1000
    assert fronts.mean() == pytest.approx(30, abs=0.6)
    assert fronts.var() == pytest.approx(15, rel=0.15)


def test_masks_are_15_percent_80_10_10_and_never_special(make_shard, tokenizer):
    settings = RowSettings(sequence_length=64, max_predictions=10)
    shard = make_shard(1500)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=3, settings=settings)
    flat = RowMaker(settings, tokenizer, 3).make([pairs], [0], None, np.arange(pairs.size), 0)
    lengths = np.diff(flat.row_offsets)
    exact = [min(10, max(1, int(round(0.15 * n)))) for n in lengths]  # noqa: RUF046
    assert np.diff(flat.mask_offsets).tolist() == exact
    special = tokenizer.special_ids
    original = flat.input_ids.copy()
    original[flat.masked_positions] = flat.masked_ids
    assert not np.isin(flat.masked_ids, list(special.values())).any()
    starts, ends = flat.row_offsets[:-1], flat.row_offsets[1:] - 1
    assert (original[starts] == special["cls"]).all() and (original[ends] == special["sep"]).all()
    assert (original == special["sep"]).sum() == 2 * flat.rows
    assert (original == special["cls"]).sum() == flat.rows
    assert (np.diff(flat.masked_positions) > 0).all()
    now = flat.input_ids[flat.masked_positions]
    total = len(now)
    assert total > 10_000
    masked, kept = now == special["mask"], now == flat.masked_ids
    assert masked.mean() == pytest.approx(0.8, abs=0.012)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    random_ids = now[~masked & ~kept]
    # Uniform over the whole vocabulary: also special ids turn up, and the mean is the middle.
    assert random_ids.mean() == pytest.approx((tokenizer.vocab_size - 1) / 2, rel=0.06)
    # Positions are uniform over a row.
    place = flat.masked_positions - np.repeat(starts, exact) + 0.5
    place /= np.repeat(lengths, exact)
    assert place.mean() == pytest.approx(0.5, abs=0.01)


def test_whole_words_are_masked_together(make_shard, tokenizer):
    settings = RowSettings(sequence_length=64, max_predictions=10, whole_word_masking=True)
    shard = make_shard(100)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=3, settings=settings)
    flat = RowMaker(settings, tokenizer, 3).make([pairs], [0], None, np.arange(pairs.size), 0)
    ids = flat.input_ids.copy()
    ids[flat.masked_positions] = flat.masked_ids
    chosen = np.zeros(len(ids), bool)
    chosen[flat.masked_positions] = True
    special = np.isin(ids, [tokenizer.special_ids["cls"], tokenizer.special_ids["sep"]])
    continues = tokenizer.continuation_pieces()[ids]
    inside = continues[1:] & ~special[:-1]
    assert inside.sum() > 1000
    assert np.array_equal(chosen[1:][inside], chosen[:-1][inside])
    counts, lengths = np.diff(flat.mask_offsets), np.diff(flat.row_offsets)
    wanted = np.array([min(10, max(1, int(round(0.15 * n)))) for n in lengths])  # noqa: RUF046
    assert (counts <= wanted).all()
    assert counts.sum() > 0.93 * wanted.sum()


def test_words_of_a_second_segment_are_those_of_its_own_shard():
    """Of a tokenizer that marks where words begin: 2 tokens each in shard 0, 3 in shard 1."""
    sentences = np.arange(0, 301, 6)
    shards = [
        TokenShard.from_arrays(
            f"words of {pieces}",
            np.arange(300 * pieces, 300 * pieces + 300).astype(np.uint16),
            sentences,
            np.array([0, 50]),
            np.arange(300) % pieces == 0,
        )
        for pieces in (2, 3)
    ]
    tokenizer = SimpleNamespace(
        is_wordpiece=False, vocab_size=2000, special_ids={"cls": 1, "sep": 2, "mask": 3}
    )
    rows = RowSettings(sequence_length=64, max_predictions=20, whole_word_masking=True, pairs="nsp")
    maker, seen = RowMaker(rows, tokenizer, 5), 0
    for epoch in range(20):
        pairs = scan_shard(*shards, shard_number=0, epoch=epoch, seed=5, settings=rows)
        flat = maker.make([pairs], [0], None, np.flatnonzero(pairs.labels == 1), epoch)
        original = flat.input_ids.copy()
        original[flat.masked_positions] = flat.masked_ids
        words = np.where(original >= 900, 1000 + original // 3, original // 2)
        masked = np.isin(np.arange(len(original)), flat.masked_positions)
        seen += int((original[masked] >= 900).sum())
        for start, end in pairwise(flat.row_offsets):
            for word in np.unique(words[start:end][masked[start:end]]):
                assert masked[start:end][words[start:end] == word].all()
    assert seen > 50


def test_ngrams_make_longer_runs(make_shard, tokenizer):
    shard = make_shard(100)

    def neighbours(ngram):
        settings = RowSettings(
            sequence_length=128, max_predictions=20, ngram=ngram, whole_word_masking=True
        )
        pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=3, settings=settings)
        flat = RowMaker(settings, tokenizer, 3).make([pairs], [0], None, np.arange(pairs.size), 0)
        return (np.diff(flat.masked_positions) == 1).mean()

    assert neighbours(3) > neighbours(1) + 0.1


def test_pairs_none_uses_one_full_segment(make_shard, tokenizer):
    settings = RowSettings(sequence_length=32, max_predictions=5, pairs="none", short_seq_prob=0.0)
    shard = make_shard(1, mean_sentences=200)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=1, settings=settings)
    flat = RowMaker(settings, tokenizer, 1).make([pairs], [0], None, np.arange(pairs.size), 0)
    assert flat.labels is None and not flat.segment_ids.any()
    assert (np.diff(flat.row_offsets)[:-1] == 32).all()


def test_sentence_order_swaps_half_the_pairs(make_shard):
    settings = RowSettings(sequence_length=32, pairs="sop")
    shard = make_shard(200)
    pairs = scan_shard(shard, shard, shard_number=0, epoch=0, seed=1, settings=settings)
    behind = pairs.b_begin == pairs.a_begin + pairs.a_length
    before = pairs.a_begin == pairs.b_begin + pairs.b_length
    assert np.array_equal(behind, pairs.labels == 0) and np.array_equal(before, pairs.labels == 1)
    assert pairs.labels.mean() == pytest.approx(0.5, abs=0.05)


def test_a_shard_of_one_document_draws_from_another_shard(make_shard, tokenizer, reference):
    lone, other = make_shard(1, seed=1, mean_sentences=60), make_shard(5, seed=2)
    settings = RowSettings(sequence_length=32, max_predictions=5)
    assert partner_number(3, 0, 0, [1, 5]) == 1
    assert partner_number(3, 0, 1, [1, 5]) == 1
    partners = {partner_number(3, epoch, 1, [1, 1, 1]) for epoch in range(40)}
    assert partners == {0, 2}
    place = {"seed": 3, "epoch": 0, "shard_number": 0}
    pairs = scan_shard(lone, other, settings=settings, **place)
    documents, others = reference.documents_of(lone), reference.documents_of(other)
    expected = reference.scan(documents, others, False, settings=settings, **place)
    assert pairs.labels.tolist() == [label for _, _, label in expected]
    flat = RowMaker(settings, tokenizer, 3).make([pairs], [0], None, np.arange(pairs.size), 0)
    for i, sample in enumerate(expected):
        ids, *_ = reference.make_row(
            sample, sample_number=i, settings=settings, tokenizer=tokenizer, **place
        )
        assert flat.input_ids[flat.row_offsets[i] : flat.row_offsets[i + 1]].tolist() == ids
    chunks = list(build_instances([lone, other], 0, settings, 3, tokenizer=tokenizer))
    assert sum(len(c["input_ids"]) for c in chunks) > pairs.size


def test_a_corpus_of_one_document_is_refused_for_pairs_only(make_shard, tokenizer):
    shard = make_shard(1)
    with pytest.raises(DataError, match="single document"):
        list(build_instances([shard], 0, RowSettings(), 1, tokenizer=tokenizer))
    for pairs in ("none", "sop"):
        settings = RowSettings(pairs=pairs)
        assert list(build_instances([shard], 0, settings, 1, tokenizer=tokenizer))


def test_a_line_of_ten_million_tokens_takes_no_time(tokenizer):
    tokens = np.full(10_000_100, 20, np.uint16)
    shard = TokenShard.from_arrays("big", tokens, [0, 50, 10_000_050, 10_000_100], [0, 1, 2, 3])
    settings = RowSettings()
    list(build_instances([shard], 0, settings, 1, tokenizer=tokenizer))  # compiled by now
    began = time.process_time()
    rows = list(build_instances([shard], 1, settings, 1, tokenizer=tokenizer))
    # Linear it is some milliseconds; token by token from the front (a list) it would be hours.
    assert time.process_time() - began < 5
    assert sum(len(chunk["input_ids"]) for chunk in rows) == 3


def test_passes_and_seeds_differ_and_repeat_themselves(make_shard, tokenizer):
    shard = make_shard(30)
    settings = RowSettings(sequence_length=32, max_predictions=5)

    def ids(number, seed):
        chunks = build_instances([shard], number, settings, seed, tokenizer=tokenizer)
        return np.concatenate([chunk["input_ids"] for chunk in chunks]).tobytes()

    assert ids(0, 1) == ids(0, 1)
    assert len({ids(0, 1), ids(1, 1), ids(0, 2)}) == 3


def test_chunks_are_bounded_and_padded(make_shard, tokenizer):
    settings = RowSettings(sequence_length=32, max_predictions=5)
    shard = make_shard(60)
    chunks = list(build_instances([shard], 0, settings, 1, tokenizer=tokenizer, chunk_rows=16))
    assert all(len(chunk["input_ids"]) == 16 for chunk in chunks[:-1])
    whole = next(build_instances([shard], 0, settings, 1, tokenizer=tokenizer, chunk_rows=10**6))
    for name, array in whole.items():
        assert np.array_equal(array, np.concatenate([chunk[name] for chunk in chunks])), name
    assert (whole["input_ids"][whole["input_mask"] == 0] == tokenizer.special_ids["pad"]).all()


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    tokens = np.array([20, 21, 60_000, 22], np.uint16)
    shard = TokenShard.from_arrays("odd", tokens, [0, 1, 4], [0, 1, 2])
    with pytest.raises(DataError, match="odd: damaged"):
        list(build_instances([shard], 0, RowSettings(), 1, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sequence_length": 4}, "sequence_length=4"),
        ({"masked_lm_prob": 0.0}, "masked_lm_prob"),
        ({"max_predictions": 0}, "max_predictions=0"),
        ({"short_seq_prob": 1.5}, "short_seq_prob"),
        ({"pairs": "both"}, "pairs='both'"),
    ],
)
def test_impossible_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RowSettings(**wrong)
