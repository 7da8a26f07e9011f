from __future__ import annotations

import random
import re

import h5py
import numpy as np
import pytest

from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import (
    FolderSettings,
    find_instance_files,
    instance_file_name,
    read_header,
    read_instances,
    write_instance_file,
)
from bertds.data.formats.padded_columns import join_columns
from bertds.data.samples.flat_rows import build_instances
from bertds.errors import DataError

SHAPE = {"sequence_length": 32, "max_predictions": 5}


@pytest.fixture
def write(make_shard, tokenizer):
    """Return write(path, ...): an instance file of a random corpus; gives (rows, shard)."""

    def write_file(path, documents=40, seed=1, pairs="nsp", **options):
        shard = make_shard(documents, seed)
        settings = RowSettings(pairs=pairs, **SHAPE)
        chunks = build_instances([shard], 0, settings, seed, tokenizer=tokenizer, chunk_rows=50)
        return write_instance_file(path, join_columns(chunks), **options), shard

    return write_file


def read_as_the_format_says(path):
    """A reader from the description of the layout alone: what other systems' loaders do."""
    with h5py.File(path, "r") as file:
        keys = [
            "input_ids",
            "input_mask",
            "segment_ids",
            "masked_lm_positions",
            "masked_lm_ids",
            "next_sentence_labels",
        ]
        assert sorted(file) == sorted(keys)
        assert [file[k].dtype for k in keys] == ["i4", "i1", "i1", "i4", "i4", "i1"]
        assert not file.attrs and all(not file[k].attrs for k in keys)
        columns = [np.asarray(file[k][:]) for k in keys]
    for ids, mask, segments, positions, original, label in zip(*columns):
        labels = np.full(len(ids), -1)
        index = len(positions)
        padding = (positions == 0).nonzero()[0]
        if len(padding):
            index = padding[0]
        labels[positions[:index]] = original[:index]
        yield ids, mask, segments, labels, int(label)


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
def test_a_reader_of_the_described_layout_accepts_our_files(
    tmp_path, write, compression, tokenizer
):
    path = tmp_path / "books_training_0.hdf5"
    count, shard = write(path, compression=compression)
    special = tokenizer.special_ids
    text = " " + " ".join(map(str, shard.token_ids.tolist())) + " "
    rows = 0
    for ids, mask, segments, labels, label in read_as_the_format_says(path):
        rows += 1
        length = mask.sum()
        assert mask[:length].all() and not ids[length:].any() and not segments[length:].any()
        original = np.where(labels >= 0, labels, ids)[:length]
        separators = np.flatnonzero(original == special["sep"])
        assert original[0] == special["cls"] and len(separators) == 2
        assert separators[1] == length - 1
        assert np.array_equal(segments[:length], np.arange(length) > separators[0])
        assert (labels >= 0).sum() == min(5, max(1, int(round(0.15 * length))))  # noqa: RUF046
        assert label in (0, 1)
        # Both segments are in the source, word for word; a true next one right behind the first.
        a, b = original[1 : separators[0]], original[separators[0] + 1 : -1]
        assert f" {' '.join(map(str, a))} " in text and f" {' '.join(map(str, b))} " in text
    assert rows == count > 100


def test_our_reader_gives_back_what_was_written(tmp_path, write, make_shard, tokenizer):
    path = tmp_path / "a.hdf5"
    count, _ = write(path)
    rows = read_instances(path, tokenizer.vocab_size)
    assert len(rows.row_offsets) - 1 == count == read_header(path).rows
    for i, (ids, mask, segments, labels, label) in enumerate(read_as_the_format_says(path)):
        span = slice(rows.row_offsets[i], rows.row_offsets[i + 1])
        masks = slice(rows.mask_offsets[i], rows.mask_offsets[i + 1])
        assert rows.token_ids[span].tolist() == ids[mask == 1].tolist()
        assert rows.second_start[i] == np.argmax(segments)
        assert rows.masked_positions[masks].tolist() == np.flatnonzero(labels >= 0).tolist()
        assert rows.masked_ids[masks].tolist() == labels[labels >= 0].tolist()
        assert rows.labels[i] == label


def test_bytes_are_a_function_of_the_rows(tmp_path, write):
    write(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5")
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_files_without_labels_and_of_other_integer_types_are_read(tmp_path, write):
    path = tmp_path / "a.hdf5"
    count, _ = write(path, pairs="none")
    assert read_instances(path).labels is None
    with h5py.File(path, "r+") as file:
        for name in list(file):
            wide = file[name][...].astype(np.int64)
            del file[name]
            file[name] = wide
        file["next_sentence_labels"] = np.ones((count, 1), np.int64)
    assert read_instances(path).labels.tolist() == [1] * count


def test_a_full_list_of_predictions_needs_no_padding_zero(tmp_path):
    ids = np.array([[7, 20, 21, 8, 22, 8]])
    chunk = {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": np.array([[0, 0, 0, 0, 1, 1]]),
        "masked_lm_positions": np.array([[1, 4]]),
        "masked_lm_ids": np.array([[30, 31]]),
        "next_sentence_labels": np.array([0]),
    }
    write_instance_file(tmp_path / "a.hdf5", chunk)
    rows = read_instances(tmp_path / "a.hdf5")
    assert rows.masked_positions.tolist() == [1, 4] and rows.masked_ids.tolist() == [30, 31]


def set_row(name, row, column, value):
    def change(file):
        file[name][row, column] = value

    return change


def drop(name):
    return lambda file: file.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_row("input_ids", 3, 1, 400), r"row 3: input_ids contains an id outside \[0, 400\)"),
        (set_row("input_ids", 3, 1, -1), "row 3: input_ids"),
        (set_row("input_mask", 2, 1, 0), "row 2: input_mask is not ones, then zeros"),
        (set_row("segment_ids", 5, 0, 1), "row 5: segment_ids is not zeros, then ones"),
        (set_row("segment_ids", 5, 1, 7), "row 5: segment_ids"),
        (
            set_row("masked_lm_positions", 4, 0, 32),
            "row 4: masked_lm_positions has a position outside",
        ),
        (
            set_row("masked_lm_positions", 4, 0, -2),
            "row 4: masked_lm_positions has a position outside",
        ),
        (set_row("masked_lm_ids", 4, 0, 400), "row 4: masked_lm_ids"),
        (drop("segment_ids"), "segment_ids missing"),
    ],
)
def test_rows_that_break_the_layout_are_named(tmp_path, write, change, message):
    path = tmp_path / "a.hdf5"
    write(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        read_instances(path, 400)
    assert str(path) in str(caught.value)


def test_descending_positions_are_refused(tmp_path, write):
    path = tmp_path / "a.hdf5"
    write(path)
    with h5py.File(path, "r+") as file:
        row = int(np.argmax((file["masked_lm_positions"][:] > 0).sum(axis=1)))
        file["masked_lm_positions"][row, :2] = file["masked_lm_positions"][row, :2][::-1]
    with pytest.raises(DataError, match=f"row {row}: masked_lm_positions is not ascending"):
        read_instances(path)


def test_damaged_and_foreign_files_are_refused(tmp_path, write):
    path = tmp_path / "a.hdf5"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.hdf5: damaged, or not HDF5"):
        read_instances(path)
    path.write_bytes(whole[:96])
    with pytest.raises(DataError, match=r"a\.hdf5: damaged, or not HDF5"):
        read_header(path)
    with pytest.raises(DataError, match="missing"):
        read_header(tmp_path / "none.hdf5")


def test_flipped_bits_in_gzip_data_never_pass(tmp_path, write):
    path = tmp_path / "a.hdf5"
    write(path)
    with h5py.File(path) as file:
        chunk = file["input_ids"].id.get_chunk_info(0)
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(30):
        damaged = bytearray(good)
        damaged[chunk.byte_offset + rng.randrange(chunk.size)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.hdf5"):
            read_instances(path)


def test_a_failed_write_leaves_nothing(tmp_path, write):
    with pytest.raises(ValueError, match="zip"):
        write(tmp_path / "a.hdf5", compression="zip")
    assert not list(tmp_path.iterdir())


def test_folder_names_are_nvidias():
    settings = FolderSettings(
        lower_case=True,
        sequence_length=128,
        max_predictions=20,
        masked_lm_prob=0.15,
        random_seed=12345,
        dupe_factor=5,
    )
    name = (
        "hdf5_lower_case_1_seq_len_128_max_pred_20_masked_lm_prob_0.15_random_seed_12345"
        "_dupe_factor_5"
    )
    assert settings.name() == name
    assert FolderSettings.parse(name) == settings
    assert FolderSettings.parse(name.removeprefix("hdf5_")) == settings
    assert FolderSettings.parse("wikicorpus_en") is None
    assert instance_file_name("wikicorpus_en", "training", 3) == "wikicorpus_en_training_3.hdf5"


def test_files_are_found_in_the_order_of_their_numbers(tmp_path):
    dataset = tmp_path / "wiki"
    dataset.mkdir()
    for number in (10, 2, 1):
        for split in ("training", "test"):
            (dataset / instance_file_name("wiki", split, number)).touch()
    for path in (dataset, tmp_path):
        assert [p.name for p in find_instance_files(path)] == [
            f"wiki_training_{n}.hdf5" for n in (1, 2, 10)
        ]
    assert len(find_instance_files(dataset, "validation")) == 3
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match=re.escape(f"{other}: contains no .hdf5 files")):
        find_instance_files(other)
    (other / "b.h5").touch()
    (other / "a.hdf5").touch()
    assert [p.name for p in find_instance_files(other)] == ["a.hdf5", "b.h5"]
