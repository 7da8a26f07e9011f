"""The way from padded to flat, to the order of computation, and back."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertds.model.row_layout import arrange
from tests.support.padded_rows import flatten_padded, pad_rows

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


@settings(max_examples=60)
@given(LENGTHS)
def test_arranged_rows_are_sorted_whole_and_restorable(lengths) -> None:
    cu_seqlens = offsets(lengths)
    tokens = torch.arange(sum(lengths))
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    arrangement = arrange(cu_seqlens, max(lengths))
    layout = arrangement.layout

    assert [n for rows_, n in layout.groups for _ in range(rows_)] == sorted(lengths, reverse=True)
    assert layout.cu_seqlens.diff().tolist() == sorted(lengths, reverse=True)
    assert layout.cu_seqlens.dtype == torch.int32
    taken = arrangement.take_tokens(tokens)
    assert torch.equal(arrangement.restore_tokens(taken), tokens)
    # Each arranged row is one of the caller's rows, whole and in order.
    order = arrangement.take_rows(torch.arange(len(lengths))).tolist()
    for place, row in enumerate(order):
        start, stop = layout.cu_seqlens[place], layout.cu_seqlens[place + 1]
        assert torch.equal(taken[start:stop], tokens[rows == row])
    found = arrangement.find_tokens(tokens)
    assert torch.equal(taken[found], tokens)


@settings(max_examples=40)
@given(LENGTHS)
def test_padded_slots_are_those_of_the_padded_batch(lengths) -> None:
    columns = max(lengths) + 1
    real = torch.arange(columns) < torch.tensor(lengths)[:, None]
    layout = arrange(offsets(lengths), max(lengths)).layout
    sorted_real = torch.arange(columns) < layout.cu_seqlens.diff()[:, None]
    slots = layout.padded_slots(int(real.sum()), columns)
    assert torch.equal(slots, sorted_real.flatten().nonzero().squeeze(1))


@settings(max_examples=40)
@given(LENGTHS)
def test_flattening_and_padding_again_restores_the_batch(lengths) -> None:
    columns = max(lengths) + 2
    real = torch.arange(columns) < torch.tensor(lengths)[:, None]
    ids = torch.arange(1, real.numel() + 1).view(real.shape) * real
    segments = (ids % 2) * real
    flat = flatten_padded(ids, real.long(), segments)
    assert torch.equal(flat.cu_seqlens, offsets(lengths))
    assert flat.max_seqlen == max(lengths)
    assert torch.equal(flat.position_ids, torch.cat([torch.arange(n) for n in lengths]))
    assert torch.equal(pad_rows(flat.input_ids, flat.slots, *ids.shape), ids)
    assert torch.equal(pad_rows(flat.segment_ids, flat.slots, *ids.shape), segments)


def test_segments_default_to_the_first() -> None:
    flat = flatten_padded(torch.tensor([[4, 5, 0]]), torch.tensor([[1, 1, 0]]))
    assert flat.segment_ids.tolist() == [0, 0]
