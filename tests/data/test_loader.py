from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import join_columns
from bertds.data.loader import BatchLoader, DataPosition, open_source, validation_batches
from bertds.data.order import EpochOrder, advance, shard_order
from bertds.data.samples.flat_rows import build_instances
from bertds.data.samples.masking import ngram_thresholds
from bertds.data.sources import token_source
from bertds.data.stream import SampleStream
from bertds.errors import StoreError
from bertds.system.fault_points import injected

LENGTH, PREDICTIONS = 32, 5
START = DataPosition()


@pytest.fixture(scope="module")
def config(make_corpus):
    return DataConfig(
        path=str(make_corpus()),
        sequence_length=LENGTH,
        max_predictions_per_sequence=PREDICTIONS,
        prefetch_steps=2,
    )


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Run a test with the whole epoch in one block, and with a block for every shard."""
    if request.param == "many blocks":
        monkeypatch.setattr(token_source, "BLOCK_ROWS", 1)


def plan(batch=12, micro=2, world=1):
    return BatchPlan(global_batch_size=batch, micro_batch_size=micro, world_size=world)


def take(source, config, steps, batch_plan, *, start=START, seed=7):
    """Return, step by step, the StepBatches of all ranks."""
    loaders = [
        BatchLoader(source, config, batch_plan, rank, start=start, seed=seed)
        for rank in range(batch_plan.world_size)
    ]
    try:
        return [[next(loader) for loader in loaders] for _ in range(steps)]
    finally:
        for loader in loaders:
            loader.close()


def rows_of(micro_batch):
    """Return each row as a tuple of everything the model sees of it."""
    bounds = micro_batch.cu_seqlens.tolist()
    positions = micro_batch.masked_lm_positions
    rows = []
    for row, (begin, end) in enumerate(pairwise(bounds)):
        inside = (positions >= begin) & (positions < end)
        labels = micro_batch.next_sentence_labels
        rows.append(
            (
                tuple(micro_batch.input_ids[begin:end].tolist()),
                tuple(micro_batch.segment_ids[begin:end].tolist()),
                tuple(micro_batch.position_ids[begin:end].tolist()),
                tuple((positions[inside] - begin).tolist()),
                tuple(micro_batch.masked_lm_ids[inside].tolist()),
                None if labels is None else labels[row].item(),
            )
        )
    return rows


def content(steps):
    """Return the rows of each global batch, in order, whatever it was cut into."""
    return [[r for part in step for m in part.micro_batches for r in rows_of(m)] for step in steps]


def names(steps):
    return [[tuple(s) for part in step for s in part.samples.tolist()] for step in steps]


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 3), (6, 1)])
def test_global_batches_do_not_depend_on_world_size_or_micro_batch(config, blocks, world, micro):
    source = open_source(config, 7)
    expected = take(source, config, 30, plan(12, 12, 1))
    found = take(source, config, 30, plan(12, micro, world))
    assert content(found) == content(expected)
    assert names(found) == names(expected)
    for step in found:
        assert len({part.next for part in step}) == 1
        for part in step:
            assert [m.rows for m in part.micro_batches] == [micro] * (12 // micro // world)
            assert part.masked_tokens == sum(len(m.masked_lm_ids) for m in part.micro_batches)
            assert part.real_tokens == sum(len(m.input_ids) for m in part.micro_batches)


def test_each_sample_once_an_epoch_and_epochs_join_without_a_seam(config, blocks):
    source = open_source(config, 7)
    sizes = [source.samples_in_epoch(epoch) for epoch in range(3)]
    assert len(set(sizes)) > 1, "pairs are drawn again, so the epochs differ in size"
    steps = sum(sizes) // 10
    stream = [name for step in names(take(source, config, steps, plan(10, 5, 2))) for name in step]
    expected = [(epoch, n) for epoch in range(3) for n in range(sizes[epoch])]
    assert stream != expected[: len(stream)], "the order is shuffled"
    followed = np.diff([number for _, number in stream]) == 1
    assert followed.mean() < 0.1, "inside a block too"
    for epoch in range(2):
        begin = sum(sizes[:epoch])
        inside = stream[begin : begin + sizes[epoch]]
        assert sorted(inside) == [(epoch, n) for n in range(sizes[epoch])]
    assert sum(sizes[:1]) % 10, "one batch straddles the border"


def test_a_batch_larger_than_the_corpus_holds_several_epochs(config, blocks):
    source = open_source(config, 7)
    sizes = [source.samples_in_epoch(epoch) for epoch in range(9)]
    batch = 3 * sizes[0]
    whole = take(source, config, 2, plan(batch, batch))
    halves = take(source, config, 2, plan(batch * 2, batch, 2))
    stream = [name for step in names(whole) for name in step]
    assert stream[: sizes[0] + sizes[1]] != sorted(stream[: sizes[0] + sizes[1]])
    assert {epoch for epoch, _ in stream} >= {0, 1, 2, 3, 4}
    assert names(halves)[0] == stream
    assert content(halves)[0] == [row for step in content(whole) for row in step]


def test_resume_from_any_position_repeats_the_stream(config, blocks):
    source = open_source(config, 7)
    steps = 2 * source.samples_in_epoch(0) // 12
    whole = take(source, config, steps, plan())
    for done in (1, 7, steps // 2, steps - 2):
        start = whole[done - 1][0].next
        rest = take(source, config, 2, plan(12, 3, 2), start=start)
        assert content(rest) == content(whole[done : done + 2])


def test_positions_are_arithmetic(config):
    source = open_source(config, 7)
    first = source.samples_in_epoch(0)
    assert advance(source, DataPosition(), first - 1) == DataPosition(0, first - 1)
    assert advance(source, DataPosition(), first) == DataPosition(1, 0)
    assert advance(source, DataPosition(0, first + 3), 0) == DataPosition(1, 3)


def test_seeds_and_epochs_change_order_pairs_and_masks(config):
    source = open_source(config, 7)
    one, two = (take(source, config, 3, plan(), seed=seed) for seed in (7, 8))
    assert names(one) != names(two) and content(one) != content(two)
    assert content(one) == content(take(source, config, 3, plan()))
    count = source.samples_in_epoch(0)
    epochs = [take(source, config, 1, plan(count, count), start=DataPosition(e)) for e in (0, 1)]
    common = set(content(epochs[0])[0]) & set(content(epochs[1])[0])
    assert len(common) < count // 4


def test_the_recipe_sets_the_length_of_masked_runs(config):
    def neighbours(ngram):
        source = open_source(replace(config, ngram=ngram, whole_word_masking=True), 7)
        ((step,),) = take(source, config, 1, plan(batch=64, micro=64))
        return (np.diff(step.micro_batches[0].masked_lm_positions.numpy()) == 1).mean()

    assert neighbours(3) > neighbours(1) + 0.05


def test_runs_are_as_long_as_in_albert():
    # ALBERT, section 3.2: p(n) = (1/n) / sum(1/k), k to 3: 6/11, 3/11, 2/11.
    assert ngram_thresholds(3) / 2**32 == pytest.approx([6 / 11, 9 / 11, 1])


def test_neighbouring_samples_are_far_apart_in_a_block(config):
    source = open_source(config, 7)
    order = EpochOrder(source, 7, 0)
    assert len(order.blocks) == 1 and sorted(order.blocks[0]) == [0, 1, 2]
    shuffle = order.shuffle(0)
    assert sorted(shuffle.tolist()) == list(range(order.starts[-1]))
    # A uniform order: the distance of neighbours is 33% of the length on average.
    assert np.abs(np.diff(shuffle)).mean() == pytest.approx(order.starts[-1] / 3, rel=0.2)


def test_shards_are_shuffled_and_blocks_bounded(make_corpus, monkeypatch):
    monkeypatch.setattr(token_source, "BLOCK_ROWS", 60)
    folder = make_corpus(train=(9,) * 20, validation=())
    source = open_source(
        DataConfig(path=str(folder), sequence_length=LENGTH, max_predictions_per_sequence=5), 7
    )
    orders = [EpochOrder(source, 7, epoch) for epoch in range(2)]
    for epoch, order in enumerate(orders):
        assert sorted(shard for block in order.blocks for shard in block) == list(range(20))
        sizes = np.diff(order.starts)
        assert (sizes <= 60).all() and sizes.sum() == source.samples_in_epoch(epoch)
        assert [order.block_at(start) for start in order.starts[:-1]] == list(range(len(sizes)))
    assert orders[0].blocks != orders[1].blocks


def test_unequal_shards_end_no_rank_early(tmp_path, make_shard, tokenizer, vocab):
    settings = RowSettings(sequence_length=LENGTH, max_predictions=PREDICTIONS)
    everything = [
        chunk
        for n in range(4)
        for chunk in build_instances([make_shard(200, n)], 0, settings, n, tokenizer=tokenizer)
    ]
    rows = join_columns(everything)
    total = 0
    for number, count in enumerate((1, 7, 1000)):
        part = {name: array[total : total + count] for name, array in rows.items()}
        path = tmp_path / f"x_training_{number}.hdf5"
        total += write_instance_file(path, part)
    config = DataConfig(path=str(tmp_path), vocab=str(vocab), sequence_length=LENGTH)
    source = open_source(config, 1)
    assert source.samples_in_epoch(0) == source.samples_in_epoch(5) == 1008
    for world in (1, 2, 3, 4):
        steps = take(source, config, 42, plan(24, 2, world), seed=1)
        stream = [name for step in names(steps) for name in step]
        assert sorted(stream) == [(0, n) for n in range(1008)]
        assert content(steps) == content(take(source, config, 42, plan(24, 4, 1), seed=1))


def test_instance_files_are_served_as_written(tmp_path, make_shard, tokenizer, vocab):
    settings = RowSettings(sequence_length=LENGTH, max_predictions=PREDICTIONS)
    written = join_columns(build_instances([make_shard(50)], 0, settings, 1, tokenizer=tokenizer))
    path = tmp_path / "a.hdf5"
    count = write_instance_file(path, written, compression="none")
    config = DataConfig(path=str(path), vocab=str(vocab), sequence_length=LENGTH)
    source = open_source(config, 1)
    assert source.has_pairs and source.samples_in_epoch(0) == count
    batch = take(source, config, 1, plan(count, count))[0][0]
    for (_, number), row in zip(batch.samples, rows_of(batch.micro_batches[0]), strict=True):
        length = written["input_mask"][number].sum()
        masked = written["masked_lm_positions"][number]
        used = (masked > 0).sum()
        assert row == (
            tuple(written["input_ids"][number][:length]),
            tuple(written["segment_ids"][number][:length]),
            tuple(range(length)),
            tuple(masked[:used]),
            tuple(written["masked_lm_ids"][number][:used]),
            written["next_sentence_labels"][number],
        )
    without = open_source(replace(config, pairs="none"), 1)
    assert not without.has_pairs
    batch = take(without, config, 1, plan())[0][0]
    assert batch.micro_batches[0].next_sentence_labels is None


def test_prepared_folder_and_instance_files_of_it_give_the_same_rows(config, tokenizer, tmp_path):
    source = open_source(config, 7)
    shards = [source.shard(n) for n in range(source.shards)]
    path = tmp_path / "x_training_0.hdf5"
    chunks = build_instances(shards, 2, source.settings, 7, tokenizer=source.tokenizer)
    count = write_instance_file(path, join_columns(chunks))
    vocab = str(source.tokenizer.files["vocab.txt"])
    static = open_source(replace(config, path=str(path), vocab=vocab), 7)
    assert count == source.samples_in_epoch(2)
    from_files = take(static, config, 1, plan(count, count))
    fresh = take(source, config, 1, plan(count, count), start=DataPosition(2))
    assert sorted(content(from_files)[0]) == sorted(content(fresh)[0])


def test_micro_batches_have_the_agreed_types(config):
    batch = take(open_source(config, 7), config, 1, plan())[0][0].micro_batches[1]
    for name in (
        "input_ids",
        "segment_ids",
        "position_ids",
        "masked_lm_positions",
        "masked_lm_ids",
        "next_sentence_labels",
    ):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.cu_seqlens.dtype == torch.int32
    lengths = batch.cu_seqlens.diff()
    assert batch.max_seqlen == lengths.max() <= batch.sequence_length == LENGTH
    assert batch.rows == 2 == len(lengths) == len(batch.next_sentence_labels)
    assert batch.cu_seqlens[-1] == len(batch.input_ids) == len(batch.position_ids)
    assert int(batch.masked_lm_positions.max()) < len(batch.input_ids)
    assert (batch.position_ids[batch.cu_seqlens[:-1].long()] == 0).all()
    moved = batch.to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids) and moved.rows == 2
    assert "rows" not in batch.model_inputs() and len(batch.model_inputs()) == 8


@pytest.mark.parametrize("world", [1, 2, 5, 40])
@pytest.mark.parametrize("micro", [1, 4, 1000])
def test_validation_covers_each_sample_once_at_any_world_size(config, world, micro):
    source = open_source(config, 7).held_out()
    expected = [row for m in validation_batches(source, 3, 0, 1, seed=7) for row in rows_of(m)]
    assert len(expected) == source.samples_in_epoch(0)
    found = []
    for rank in range(world):
        batches = list(validation_batches(source, micro, rank, world, seed=7))
        assert all(m.rows == micro for m in batches[:-1])
        found += [row for m in batches for row in rows_of(m)]
    assert found == expected


def test_validation_can_take_an_even_part_and_spans_shards(config):
    source = open_source(config, 7)
    every = [r for m in validation_batches(source, 4, 0, 1, seed=7) for r in rows_of(m)]
    some = [
        row
        for rank in range(2)
        for m in validation_batches(source, 4, rank, 2, seed=7, max_samples=20)
        for row in rows_of(m)
    ]
    assert some == [every[n * len(every) // 20] for n in range(20)]


def test_splits_do_not_overlap(config):
    train, validation = open_source(config, 7), open_source(config, 7, split="validation")
    assert train.describe()["documents"] == 34 and validation.describe()["documents"] == 4
    assert train.held_out().describe() == validation.describe()
    counts = train.token_counts()
    assert counts.sum() == train.describe()["tokens"] and len(counts) == 400


def test_errors_in_the_thread_surface_in_the_consumer(config):
    source = open_source(config, 7)
    loader = BatchLoader(source, config, plan(), 0, seed=7)
    calls = threading.Event()

    def broken(batch):
        calls.set()
        raise OSError("the disk is gone")

    with injected("data.batch", broken), pytest.raises(OSError, match="the disk is gone"):
        for _ in range(10):
            next(loader)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    assert calls.is_set()
    loader.close()


def test_an_error_of_a_store_is_not_taken_for_a_batch(config):
    """A rank that took it for one would leave alone and lose the steps since the last save."""
    made = []

    def give_up(batch):
        made.append(batch)
        if len(made) > 1:
            raise StoreError("stalled")
        return batch

    with (
        injected("data.batch", give_up),
        BatchLoader(open_source(config, 7), config, plan(), 0, seed=7) as loader,
    ):
        assert loader.wait(None) and loader.has_batch()
        next(loader)
        assert loader.wait(None) and not loader.has_batch()
        assert str(loader.gave_up) == "stalled"


def test_close_ends_the_thread_and_may_be_repeated(config):
    before = threading.active_count()
    loader = BatchLoader(open_source(config, 7), config, plan(), 0, seed=7)
    next(loader)
    began = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - began < 5 and threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)


def test_prefetch_stays_ahead_and_waiting_is_counted(config):
    with BatchLoader(open_source(config, 7), config, plan(), 0, seed=7) as loader:
        assert len(list(islice(loader, 3))) == 3
        waited = loader.stall_seconds
        with injected("data.batch", lambda batch: (time.sleep(0.2), batch)[1]):
            for _ in range(6):
                next(loader)
        assert loader.stall_seconds > waited + 0.3


def test_each_block_is_opened_once_and_announced_in_its_order(config, monkeypatch) -> None:
    """Over two epochs and a half, with the next block opened ahead across their ends."""
    monkeypatch.setattr(token_source, "BLOCK_ROWS", 1)
    source = open_source(config, 7)
    opened: list[tuple[int, list[int]]] = []
    announced: list[list[int]] = []
    open_block = source.open_block
    monkeypatch.setattr(source, "read_ahead", lambda shards: announced.append(list(shards)))
    monkeypatch.setattr(
        source,
        "open_block",
        lambda epoch, shards: opened.append((epoch, list(shards))) or open_block(epoch, shards),
    )
    stream = SampleStream(source, 7, ahead=True)
    position, rows = START, source.samples_in_epoch(0) * 5 // 2
    for _ in range(rows // 10):
        stream.read(position, 10)
        position = advance(source, position, 10)
    stream.close()
    orders = [[[s] for s in shard_order(7, epoch, source.shards)] for epoch in range(4)]
    want = [(epoch, block) for epoch, blocks in enumerate(orders) for block in blocks]
    assert opened == want[: len(opened)] and len(opened) > 2 * source.shards
    for number, shards in enumerate(announced):
        epoch, place = divmod(number, source.shards)
        coming = orders[epoch][place:] + orders[epoch + 1]
        assert shards == [shard for [shard] in coming]


def test_only_a_few_orders_are_remembered(config) -> None:
    source = open_source(config, 7)
    stream = SampleStream(source, 7, ahead=False)
    for epoch in range(8):
        stream.read(DataPosition(epoch, 0), 2)
    assert len(stream._orders) <= 3 and len(source._counts) <= 4


def test_a_block_takes_shards_as_long_as_they_fit() -> None:
    class Shards:
        shards, block_rows = 5, 6

        def rows_by_shard(self, _: int) -> np.ndarray:
            return np.full(5, 3)

    order = EpochOrder(Shards(), 7, 0)  # type: ignore[arg-type]
    assert [len(block) for block in order.blocks] == [2, 2, 1]
    assert order.starts == [0, 6, 12, 15]
    assert [order.block_at(offset) for offset in (0, 5, 6, 11, 12, 14)] == [0, 0, 1, 1, 2, 2]
