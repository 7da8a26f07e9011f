"""Turns documents into samples: which sentences form segments A and B, and the label.

The algorithm of Google's ``create_pretraining_data.py``, per document and epoch. A target length is
chosen (``max_tokens``, or a random shorter one with probability ``short_seq_prob``). Sentences are
gathered until the target is reached or the document ends. Segment A is a random number of the first
of them. Segment B is the rest (label 0) or, with probability 1/2 or if there is no rest, sentences
from a random position of another document (label 1). In that case the unused rest goes back to the
document, so that label 1 is slightly more frequent than label 0.

- Label 1 always means a truly different document: from the same shard or, if the shard has only
  one, from another shard. (NVIDIA's code may draw the same document and call it "next".)
- ``pairs="sop"``: B is always the rest; label 1 = the two are swapped. A single sentence is divided
  at a random token; a single token gives no sample.
- ``pairs="none"``: one segment of all gathered sentences, with label 0.

A sample needs no copy of its tokens: each segment is a contiguous range of a shard's tokens.
Chunking a document is a pure function of (seed, epoch, shard number, document number). The pass
``p`` of duplicated instance files is epoch ``p`` of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.token_shards import TokenShard
from bertds.data.rng import (
    CHUNKS,
    PARTNER_SHARD,
    below,
    derive_key,
    probability_threshold,
    random_u64,
)
from bertds.data.samples.kernels import NSP, ONE_SEGMENT, SOP, scan
from bertds.errors import DataError

_KINDS: dict[str, int] = {"nsp": NSP, "sop": SOP, "none": ONE_SEGMENT}


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The samples of one shard and epoch, before truncation; token ranges, 25 bytes per sample."""

    shard: TokenShard
    """Contains segment A (and B, unless ``other`` differs)."""
    other: TokenShard
    """Contains a random segment B; a true next one is in ``shard``."""
    a_begin: np.ndarray
    """int64 [N], index into ``shard.token_ids``."""
    a_length: np.ndarray
    """int32 [N]."""
    b_begin: np.ndarray
    """int64 [N], index into ``other.token_ids`` if the label is 1, else ``shard.token_ids``."""
    b_length: np.ndarray
    """int32 [N], 0 if there is only one segment."""
    labels: np.ndarray
    """int8 [N], 1 = random (nsp) or swapped (sop)."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.labels)


def partner_number(seed: int, epoch: int, shard_number: int, documents: Sequence[int]) -> int:
    """Return the number of the shard that a shard's random segments come from in this epoch.

    It is the shard itself if it has 2 documents or more, otherwise another one, drawn uniformly.

    Args:
        seed: the run's seed.
        epoch: epoch, or pass of duplicated instance files.
        shard_number: the shard in question.
        documents: the number of documents of every shard of the corpus.

    Raises:
        DataError: the whole corpus is one document.
    """
    if documents[shard_number] > 1:
        return shard_number
    if len(documents) < 2:
        raise DataError(
            "the corpus is a single document, so random next sentences cannot be drawn from "
            "another one; add documents (separated by blank lines in a text file), or set "
            "data.pairs to none or sop"
        )
    draw = random_u64(derive_key(seed, PARTNER_SHARD, epoch), shard_number)
    choice = below(draw, len(documents) - 1)
    return choice + (choice >= shard_number)  # skip the shard itself


def scan_shard(
    shard: TokenShard,
    other: TokenShard,
    *,
    shard_number: int,
    epoch: int,
    seed: int,
    settings: RowSettings,
) -> Pairs:
    """Divide all documents of a shard into samples (about 10 million per second and core).

    Args:
        shard: the documents.
        other: the shard of random segments, see :func:`partner_number`; may be ``shard``.
        shard_number: its number in the corpus.
        epoch: epoch, or pass of duplicated instance files.
        seed: the run's seed.
        settings: lengths and kind of pairs.
    """
    capacity = shard.sentences  # each sample uses up at least one sentence
    arrays = [np.empty(capacity, dtype) for dtype in _COLUMN_DTYPES]
    count = _call_scan(shard, other, shard_number, epoch, seed, settings, arrays)
    # Copies, so that the memory for the largest possible number of samples is freed.
    return Pairs(shard, other, *(array[:count].copy() for array in arrays))


def count_shard(
    shard: TokenShard,
    other: TokenShard,
    *,
    shard_number: int,
    epoch: int,
    seed: int,
    settings: RowSettings,
) -> int:
    """Return the number of samples that :func:`scan_shard` would give, without storing them."""
    arrays = [np.empty(0, dtype) for dtype in _COLUMN_DTYPES]
    return _call_scan(shard, other, shard_number, epoch, seed, settings, arrays)


_COLUMN_DTYPES = (np.int64, np.int32, np.int64, np.int32, np.int8)


def _call_scan(
    shard: TokenShard,
    other: TokenShard,
    shard_number: int,
    epoch: int,
    seed: int,
    settings: RowSettings,
    arrays: list[np.ndarray],
) -> int:
    count = scan(
        shard.sentence_offsets,
        shard.document_offsets,
        other.sentence_offsets,
        other.document_offsets,
        shard is other,
        np.uint64(derive_key(seed, CHUNKS, epoch, shard_number)),
        _KINDS[settings.pairs],
        settings.max_tokens,
        np.uint64(probability_threshold(settings.short_seq_prob)),
        *arrays,
    )
    return int(count)
