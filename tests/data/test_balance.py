"""Balanced and packed micro-batches: the same samples in each step, in other hands or shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.data.balance import balance_rows
from bertds.data.batches import IGNORED, pad_to_budget
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.loader import BatchLoader, open_source
from bertds.data.samples.flat_rows import build_instances
from bertds.data.sources import token_source
from bertds.model.bert import BertForPreTraining

LENGTH, PREDICTIONS = 32, 5


@given(st.lists(st.integers(2, 512), min_size=1, max_size=12), st.integers(1, 9))
@settings(max_examples=60)
def test_every_row_is_used_once_and_sums_differ_by_at_most_one_row(some, bins) -> None:
    lengths = np.array(some * bins)
    dealt = balance_rows(lengths, bins)
    assert dealt.shape == (bins, len(some))
    assert sorted(dealt.flatten().tolist()) == list(range(len(lengths)))
    sums = lengths[dealt].sum(1)
    assert sums.max() - sums.min() <= max(some)
    assert np.array_equal(dealt, balance_rows(lengths, bins))


def test_real_lengths_come_out_nearly_even() -> None:
    generator = np.random.default_rng(0)
    lengths = np.minimum(512, generator.lognormal(5.4, 0.9, 8 * 16).astype(int) + 3)
    as_they_lie = lengths.reshape(8, 16).sum(1)
    dealt = lengths[balance_rows(lengths, 8)].sum(1)
    assert as_they_lie.max() / as_they_lie.mean() > 1.1
    assert dealt.max() / dealt.mean() < 1.02


@pytest.fixture(scope="module")
def config(make_corpus):
    return DataConfig(
        path=str(make_corpus()),
        sequence_length=LENGTH,
        max_predictions_per_sequence=PREDICTIONS,
        balance="tokens",
    )


def steps_of(config, world: int, micro: int, steps: int, skip: int = 0):
    """Return step by step what each rank got."""
    plan = BatchPlan(global_batch_size=24, micro_batch_size=micro, world_size=world)
    source = open_source(config, 7)
    loaders = [BatchLoader(source, config, plan, rank, seed=7) for rank in range(world)]
    try:
        return [[next(loader) for loader in loaders] for _ in range(steps)][skip:]
    finally:
        for loader in loaders:
            loader.close()


def names(step) -> list[tuple[int, int]]:
    return sorted(map(tuple, np.concatenate([part.samples for part in step]).tolist()))


@pytest.mark.parametrize("one_block_a_shard", [False, True])
def test_the_samples_of_a_step_are_those_of_rows_in_order(
    config, one_block_a_shard, monkeypatch
) -> None:
    if one_block_a_shard:
        monkeypatch.setattr(token_source, "BLOCK_ROWS", 1)
    plain = steps_of(replace(config, balance="rows"), 1, 24, 8)
    for world, micro in ((1, 6), (2, 3), (4, 2)):
        for want, found in zip(plain, steps_of(config, world, micro, 8), strict=True):
            assert names(found) == names(want)
            assert sum(p.masked_tokens for p in found) == want[0].masked_tokens
            assert sum(p.real_tokens for p in found) == want[0].real_tokens
            assert {p.next for p in found} == {want[0].next}
            sums = [b.input_ids.numel() for part in found for b in part.micro_batches]
            assert len(sums) == 24 // micro and max(sums) - min(sums) <= LENGTH
            assert all(b.rows == micro for part in found for b in part.micro_batches)


def test_samples_are_named_in_the_order_of_the_rows(config) -> None:
    [[step]] = steps_of(config, 1, 6, 1)
    [[plain]] = steps_of(replace(config, balance="rows"), 1, 24, 1)
    rows = {}
    [batch] = plain.micro_batches
    for name, row in zip(plain.samples.tolist(), batch.input_ids.split(lengths(batch))):
        rows[tuple(name)] = row
    found = iter(step.samples.tolist())
    for batch in step.micro_batches:
        for row in batch.input_ids.split(lengths(batch)):
            assert torch.equal(row, rows[tuple(next(found))])


def lengths(batch) -> list[int]:
    return batch.cu_seqlens.diff().tolist()


def test_stored_rows_are_balanced_too(config, tmp_path, tokenizer, vocab) -> None:
    source = open_source(config, 7)
    shards = [source.shard(number) for number in range(source.shards)]
    chunks = build_instances(shards, 0, source.settings, 7, tokenizer=tokenizer)
    for number, arrays in enumerate(chunks):
        path = tmp_path / f"w_training_{number}.hdf5"
        write_instance_file(path, arrays)
    stored = replace(config, path=str(tmp_path), vocab=str(vocab))
    for balanced, plain in zip(
        steps_of(stored, 2, 3, 3), steps_of(replace(stored, balance="rows"), 1, 24, 3), strict=True
    ):
        assert names(balanced) == names(plain)


# -- packing ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(config):
    """Steps with fillers, and the same without."""
    plain = [step for [step] in steps_of(config, 1, 6, 6)]
    filled = [step for [step] in steps_of(replace(config, pack_tokens=160), 1, 6, 6)]
    return plain, filled


def test_shapes_do_not_change(packed) -> None:
    batches = [batch for step in packed[1] for batch in step.micro_batches]
    assert {b.input_ids.numel() for b in batches} <= {160, 320}
    assert len({b.input_ids.numel() for b in packed[0][0].micro_batches}) > 1
    assert {b.masked_lm_ids.numel() for b in batches} == {6 * PREDICTIONS}
    assert {b.next_sentence_labels.numel() for b in batches} == {6 + 5}
    assert {b.max_seqlen for b in batches} == {LENGTH}
    for batch in batches:
        assert batch.cu_seqlens[-1] == batch.input_ids.numel()
        assert min(lengths(batch)) >= 0 and max(lengths(batch)) <= LENGTH
        assert batch.position_ids.max() < LENGTH


def test_no_filler_row_is_longer_than_a_row_may_be(packed) -> None:
    """Their number is rounded up: 4 where the budget is a little more than 3 rows."""
    batch = packed[0][0].micro_batches[0]
    budget = batch.input_ids.numel() + 69
    filled = pad_to_budget(batch._replace(sequence_length=budget // 3 - 1), budget, PREDICTIONS)
    assert lengths(filled)[batch.rows :] == [18, 17, 17, 17]
    assert filled.position_ids[-17:].tolist() == list(range(17))


def test_counts_are_those_of_real_tokens(packed) -> None:
    for plain, filled in zip(*packed, strict=True):
        assert filled.masked_tokens == plain.masked_tokens
        assert filled.real_tokens == plain.real_tokens
        for one, other in zip(plain.micro_batches, filled.micro_batches, strict=True):
            assert (
                other.masked
                == one.masked_lm_ids.numel()
                == int((other.masked_lm_ids != -100).sum())
            )
            assert other.rows == one.rows


@pytest.mark.parametrize("with_nsp", [True, False])
@pytest.mark.parametrize("exactly_full", [False, True])
def test_fillers_change_neither_loss_nor_gradient(
    packed, tokenizer, with_nsp, exactly_full
) -> None:
    batch = packed[0][0].micro_batches[0]
    budget = batch.input_ids.numel() if exactly_full else 160
    filled = pad_to_budget(batch, budget, PREDICTIONS)
    if exactly_full:
        assert 0 in lengths(filled)  # empty filler rows
    if not with_nsp:
        batch, filled = (b._replace(next_sentence_labels=None) for b in (batch, filled))
    model = BertForPreTraining(
        ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        tokenizer.vocab_size,
    )
    results = []
    for one in (batch, filled):
        model.zero_grad()
        output = model(**one.model_inputs())
        (output.mlm_loss_sum + output.nsp_loss_sum).backward()
        results.append((output, [p.grad.clone() for p in model.parameters()]))
    (want, gradients), (found, others) = results
    assert want.predictions is None and found.predictions is None  # only where asked for
    for left, right in zip(want[:4], found[:4], strict=True):
        assert left.item() == pytest.approx(right.item(), rel=1e-6)
    for left, right in zip(gradients, others, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    assert int((filled.masked_lm_ids == IGNORED).sum()) > 0
