from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertds.data import rng
from bertds.data.samples import kernels

WORDS = st.integers(0, 2**64 - 1)


def test_stream_is_splitmix64():
    # The published test vector of SplitMix64 for seed 1234567.
    assert [rng.random_u64(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(key=WORDS, start=st.integers(0, 2**40))
def test_python_numpy_and_compiled_draws_are_equal(key, start):
    assert rng.random_u64_array(key, 4).tolist() == [rng.random_u64(key, i) for i in range(4)]
    plain = rng.random_u64(key, start)
    with np.errstate(over="ignore"):
        compiled = kernels.jit_u64.py_func(np.uint64(key), np.uint64(start))
        assert int(compiled) == plain
    assert int(kernels.jit_u64(np.uint64(key), np.uint64(start))) == plain


@given(word=WORDS, limit=st.integers(1, 2**32 - 1))
def test_below_stays_below_and_agrees(word, limit):
    value = rng.below(word, limit)
    assert 0 <= value < limit
    assert kernels.jit_below(np.uint64(word), limit) == value


def test_below_is_uniform():
    draws = [rng.below(rng.random_u64(9, i), 7) for i in range(70_000)]
    assert np.allclose(np.bincount(draws) / 70_000, 1 / 7, atol=0.006)


def test_the_numbers_of_the_streams_stay_as_they_are():
    """Prepared files and the batches of every run depend on them."""
    below_the_seed = [rng.CHUNKS, rng.ROWS, rng.SHARD_ORDER, rng.SAMPLE_ORDER, rng.PARTNER_SHARD]
    assert below_the_seed == [1, 2, 3, 4, 5]
    assert [rng.SPLIT_ROWS, rng.FILE_ORDER] == [101, 2]


def test_keys_of_different_paths_differ():
    paths = [(a, b, c) for a in range(1, 6) for b in range(20) for c in range(20)]
    keys = {rng.derive_key(42, *path) for path in paths} | {rng.derive_key(43, *p) for p in paths}
    assert len(keys) == 2 * len(paths)


@given(key=WORDS, count=st.integers(0, 300))
def test_permutation_holds_each_number_once(key, count):
    assert sorted(rng.permutation(key, count).tolist()) == list(range(count))


@pytest.mark.parametrize("trials", [0, 1, 5, 63, 64, 65, 128, 200])
def test_heads_of_coins_are_bits_of_the_draws(trials):
    """Truncation tosses one coin per token that is lost: the low bits of one draw after another."""
    heads, draw = kernels._binomial_half(np.uint64(9), np.uint64(3), trials)
    bits = "".join(f"{rng.random_u64(9, 3 + number):064b}"[::-1] for number in range(4))
    assert heads == bits[:trials].count("1")
    assert int(draw) == 3 + -(-trials // 64)


def test_probabilities_are_rounded_to_the_nearest_of_32_bits():
    assert [rng.probability_threshold(p) for p in (0.0, 0.1, 0.8, 1.0)] == [
        0,
        429_496_730,  # of 429,496,729.6
        3_435_973_837,  # of 3,435,973,836.8
        2**32,
    ]
