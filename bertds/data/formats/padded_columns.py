"""Rows in NVIDIA's padded layout (see ``nvidia_hdf5``): whole columns, filled row by row.

Each row is written once, at its final place in the file, so that neither shuffling nor joining
copies it again.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bertds.system.numba_jit import compiled

Columns = dict[str, np.ndarray]


def empty_columns(
    rows: int, sequence_length: int, max_predictions: int, *, labels: bool
) -> Columns:
    """Return uninitialized columns, to be filled by :func:`place_rows`."""
    columns: Columns = {
        "input_ids": np.empty((rows, sequence_length), np.int32),
        "input_mask": np.empty((rows, sequence_length), np.int8),
        "segment_ids": np.empty((rows, sequence_length), np.int8),
        "masked_lm_positions": np.empty((rows, max_predictions), np.int32),
        "masked_lm_ids": np.empty((rows, max_predictions), np.int32),
    }
    if labels:
        columns["next_sentence_labels"] = np.empty(rows, np.int8)
    return columns


def join_columns(chunks: Iterable[Columns]) -> Columns:
    """Concatenate the rows of chunks, of which there is at least one."""
    first, *others = chunks
    return {name: np.concatenate([first[name], *(c[name] for c in others)]) for name in first}


@compiled
def place_rows(
    places,
    pad,
    row_offsets,
    input_ids,
    segment_ids,
    mask_offsets,
    masked_positions,
    masked_ids,
    out_ids,
    out_mask,
    out_segments,
    out_positions,
    out_masked,
):
    """Write flat row r to row ``places[r]`` of the columns, including padding.

    Args:
        places: int64 [N].
        pad: id of [PAD].
        row_offsets: int64 [N + 1]; this and the following as in ``FlatRows``.
        input_ids: [T].
        segment_ids: [T].
        mask_offsets: int64 [N + 1].
        masked_positions: [M], indices into the flat arrays.
        masked_ids: [M].
        out_ids: int32 [rows, S].
        out_mask: int8 [rows, S].
        out_segments: int8 [rows, S].
        out_positions: int32 [rows, P].
        out_masked: int32 [rows, P].
    """
    width = out_ids.shape[1]
    predictions = out_positions.shape[1]
    # The columns are uninitialized, so padding is written too.
    for row in range(len(places)):
        place = places[row]
        start = row_offsets[row]
        size = row_offsets[row + 1] - start
        for i in range(size):
            out_ids[place, i] = input_ids[start + i]
            out_mask[place, i] = 1
            out_segments[place, i] = segment_ids[start + i]
        for i in range(size, width):
            out_ids[place, i] = pad
            out_mask[place, i] = 0
            out_segments[place, i] = 0
        # Positions index the flat arrays in the input, and the row in the output.
        first = mask_offsets[row]
        masked = mask_offsets[row + 1] - first
        for i in range(masked):
            out_positions[place, i] = masked_positions[first + i] - start
            out_masked[place, i] = masked_ids[first + i]
        for i in range(masked, predictions):
            out_positions[place, i] = 0
            out_masked[place, i] = 0
