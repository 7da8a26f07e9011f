"""The loader's output: micro batches of flat rows, and the step that they form.

T tokens, B rows, M masked positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bertds.config.batch_plan import BatchPlan
from bertds.data.order import DataPosition
from bertds.data.samples.flat_rows import FlatRows

IGNORED = -100
"""The label of a filler position or row: it has no loss and no gradient."""


class MicroBatch(NamedTuple):
    """Rows for one forward pass: real tokens only, one row after the other.

    T tokens, B rows, M masked positions.
    """

    input_ids: torch.Tensor
    """int64 [T], masked."""
    segment_ids: torch.Tensor
    """int64 [T]."""
    position_ids: torch.Tensor
    """int64 [T], from 0 in each row."""
    cu_seqlens: torch.Tensor
    """int32 [B + 1]: row b is tokens cu_seqlens[b] ... cu_seqlens[b + 1] - 1."""
    max_seqlen: int
    """The length of the longest row."""
    masked_lm_positions: torch.Tensor
    """int64 [M], indices into the T tokens, ascending."""
    masked_lm_ids: torch.Tensor
    """int64 [M], the original ids at these positions."""
    next_sentence_labels: torch.Tensor | None
    """int64 [B], 1 = random (or swapped); None without pairs."""
    rows: int
    """The number of rows, B."""
    sequence_length: int
    """The maximum length of a row."""
    masked: int = 0
    """The number of masked positions that are real; the others have the label -100."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """Copy to a device, without waiting if the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> MicroBatch:
        """Copy to page-locked memory, from which a device can copy in the background."""
        return self._map(lambda tensor: tensor.pin_memory())

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the model's ``forward``, by name."""
        return {name: getattr(self, name) for name in self._fields[:8]}

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        changed: dict[str, Any] = {
            name: change(value)
            for name, value in zip(self._fields, self, strict=True)
            if isinstance(value, torch.Tensor)
        }
        return self._replace(**changed)


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """This rank's part of one optimizer step."""

    micro_batches: list[MicroBatch]
    masked_tokens: int
    real_tokens: int
    samples: np.ndarray
    """int64 [rows, 2]: epoch and sample number of each row, in order."""
    next: DataPosition
    """Where the next global batch begins (the same on every rank)."""
    plan: BatchPlan
    """How this step's global batch is cut."""


def cut(flat: FlatRows, micro_batch_size: int, sequence_length: int) -> list[MicroBatch]:
    """Cut rows into micro-batches, in order; the last one may be smaller."""
    batches = []
    for first in range(0, flat.rows, micro_batch_size):
        last = min(first + micro_batch_size, flat.rows)
        begin, end = int(flat.row_offsets[first]), int(flat.row_offsets[last])
        masks = slice(int(flat.mask_offsets[first]), int(flat.mask_offsets[last]))
        # Offsets and masked positions count from the first token of the micro batch.
        offsets = flat.row_offsets[first : last + 1] - begin
        labels = None if flat.labels is None else torch.from_numpy(flat.labels[first:last])
        batches.append(
            MicroBatch(
                input_ids=torch.from_numpy(flat.input_ids[begin:end]),
                segment_ids=torch.from_numpy(flat.segment_ids[begin:end]),
                position_ids=torch.from_numpy(flat.position_ids[begin:end]),
                cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
                max_seqlen=int(np.diff(offsets).max()),
                masked_lm_positions=torch.from_numpy(flat.masked_positions[masks] - begin),
                masked_lm_ids=torch.from_numpy(flat.masked_ids[masks]),
                next_sentence_labels=labels,
                rows=last - first,
                sequence_length=sequence_length,
                masked=masks.stop - masks.start,
            )
        )
    return batches


def pad_to_budget(batch: MicroBatch, budget: int, max_predictions: int) -> MicroBatch:
    """Give a micro batch a shape that does not depend on the lengths of its rows.

    Fillers are added, which no real token attends to and no loss counts. They extend the flat rows
    to ``budget`` tokens (or the next multiple of it), the masked positions to ``max_predictions``
    per row, and the number of rows by as many as the fillers may need. Fillers cost only their
    share of the linear layers.

    Args:
        batch: real rows.
        budget: number of tokens.
        max_predictions: maximum number of masked positions per row.
    """
    tokens, masked = batch.input_ids.numel(), batch.masked_lm_ids.numel()
    total = -(-tokens // budget) * budget
    fillers = -(-budget // batch.sequence_length)  # no filler row is longer than a real one may be
    spare = total - tokens
    # Divide the filler tokens evenly over the filler rows; some may be empty.
    lengths = [spare // fillers + (number < spare % fillers) for number in range(fillers)]
    ends = tokens + np.cumsum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    labels = batch.next_sentence_labels
    missing = batch.rows * max_predictions - masked
    return batch._replace(
        input_ids=_longer(batch.input_ids, spare, 0),
        segment_ids=_longer(batch.segment_ids, spare, 0),
        position_ids=torch.cat([batch.position_ids, torch.from_numpy(positions)]),
        cu_seqlens=torch.cat([batch.cu_seqlens, torch.from_numpy(ends.astype(np.int32))]),
        max_seqlen=batch.sequence_length,
        masked_lm_positions=_longer(batch.masked_lm_positions, missing, 0),
        masked_lm_ids=_longer(batch.masked_lm_ids, missing, IGNORED),
        next_sentence_labels=None if labels is None else _longer(labels, fillers, IGNORED),
    )


def _longer(values: torch.Tensor, more: int, filler: int) -> torch.Tensor:
    return torch.cat([values, values.new_full((more,), filler)])
