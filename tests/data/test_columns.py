"""Padded rows, written where they belong, equal the plain numpy layout."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import empty_columns
from bertds.data.formats.token_shards import offsets_of
from bertds.data.samples.flat_rows import FlatRows, padded_layout, place_flat_rows

S, P, PAD = 12, 3, 7


def some_rows(count: int, seed: int, labels: bool = True) -> FlatRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, S + 1, count)
    masked = random.integers(0, P + 1, count)
    row_offsets, mask_offsets = offsets_of(lengths), offsets_of(masked)
    positions = [
        row_offsets[r] + np.sort(random.choice(lengths[r], masked[r], replace=False))
        for r in range(count)
    ]
    total = int(row_offsets[-1])
    return FlatRows(
        random.integers(0, 30_000, total),
        random.integers(0, 2, total),
        np.zeros(total, np.int64),
        row_offsets,
        np.concatenate([np.zeros(0, np.int64), *positions]),
        random.integers(0, 30_000, int(mask_offsets[-1])),
        mask_offsets,
        random.integers(0, 2, count) if labels else None,
    )


def plain_layout(flat: FlatRows) -> dict[str, np.ndarray]:
    """Pad row by row."""
    columns = {
        "input_ids": np.full((flat.rows, S), PAD, np.int32),
        "input_mask": np.zeros((flat.rows, S), np.int8),
        "segment_ids": np.zeros((flat.rows, S), np.int8),
        "masked_lm_positions": np.zeros((flat.rows, P), np.int32),
        "masked_lm_ids": np.zeros((flat.rows, P), np.int32),
    }
    for row in range(flat.rows):
        start, end = flat.row_offsets[row : row + 2]
        columns["input_ids"][row, : end - start] = flat.input_ids[start:end]
        columns["input_mask"][row, : end - start] = 1
        columns["segment_ids"][row, : end - start] = flat.segment_ids[start:end]
        first, last = flat.mask_offsets[row : row + 2]
        positions = flat.masked_positions[first:last] - start
        columns["masked_lm_positions"][row, : last - first] = positions
        columns["masked_lm_ids"][row, : last - first] = flat.masked_ids[first:last]
    if flat.labels is not None:
        columns["next_sentence_labels"] = flat.labels.astype(np.int8)
    return columns


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_layout_equals_that_of_plain_python(count: int, labels: bool) -> None:
    flat = some_rows(count, count, labels)
    ours, plain = padded_layout(flat, S, P, PAD), plain_layout(flat)
    assert list(ours) == list(plain)
    for name, column in plain.items():
        assert ours[name].dtype == column.dtype and np.array_equal(ours[name], column)


def test_rows_are_written_at_their_places_and_nowhere_else() -> None:
    flat = some_rows(40, 1)
    places = np.random.default_rng(2).permutation(100)[:40]
    columns = empty_columns(100, S, P, labels=True)
    for column in columns.values():
        column.fill(99)
    place_flat_rows(flat, columns, places, PAD)
    others = np.setdiff1d(np.arange(100), places)
    for name, plain in plain_layout(flat).items():
        assert np.array_equal(columns[name][places], plain)
        assert (columns[name][others] == 99).all()


@pytest.mark.parametrize("count", [0, 30])
def test_columns_that_are_not_compressed_are_contiguous(tmp_path: Path, count: int) -> None:
    columns = plain_layout(some_rows(count, 3))
    assert write_instance_file(tmp_path / "a.hdf5", columns, compression="none") == count
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert set(file) == set(columns)
        for name, column in columns.items():
            assert file[name].dtype == column.dtype and np.array_equal(file[name], column)
            assert file[name].chunks is None
