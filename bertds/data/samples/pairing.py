"""Documents to samples: which sentences make segment A, which make segment B, and the label.

The algorithm of Google's ``create_pretraining_data.py``, per document and epoch: a target length
(``max_tokens``, or a random shorter one with probability ``short_seq_prob``); sentences are
gathered until the target is reached or the document ends; segment A is a random number of the first
of them; segment B is the rest (label 0) or, by a fair coin or because there is no rest, sentences
of another document from a random one on (label 1), and then the unused rest goes back to the
document (so that label 1 is somewhat more frequent than 0).

- Label 1 always means a truly different document: of the same shard, or, when the shard has but
  one, of another shard. (NVIDIA's code may draw the same document and call it "next".)
- ``pairs="sop"``: B is always the rest; label 1 = the two are swapped. A lone sentence is cut in
  two at a random token; a lone token gives no sample.
- ``pairs="none"``: one segment of all sentences gathered, label 0 throughout.

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
    """Where segment A is located (and B, unless ``other`` differs)."""
    other: TokenShard
    """Where a random segment B is located; a true next one is in ``shard``."""
    a_begin: np.ndarray
    """int64 [N], index into ``shard.token_ids``."""
    a_length: np.ndarray
    """int32 [N]."""
    b_begin: np.ndarray
    """int64 [N], index into ``other.token_ids`` if the label is 1, else ``shard.token_ids``."""
    b_length: np.ndarray
    """int32 [N], 0 where there is one segment."""
    labels: np.ndarray
    """int8 [N], 1 = random (nsp) or swapped (sop)."""

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.labels)


def partner_number(seed: int, epoch: int, shard_number: int, documents: Sequence[int]) -> int:
    """Return the shard from which a shard's random segments come in this epoch.

    It is the shard itself if it has two documents or more, else another one, drawn uniformly.

    Args:
        seed: the run's seed.
        epoch: epoch, or pass of duplicated instance files.
        shard_number: the shard in question.
        documents: documents of every shard of the corpus.

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
    return choice + (choice >= shard_number)


def scan_shard(
    shard: TokenShard,
    other: TokenShard,
    *,
    shard_number: int,
    epoch: int,
    seed: int,
    settings: RowSettings,
) -> Pairs:
    """Cut all documents of a shard into samples (about 10 million a second and core).

    Args:
        shard: the documents.
        other: where random segments come from, see :func:`partner_number`; may be ``shard``.
        shard_number: its number in the corpus.
        epoch: epoch, or pass.
        seed: the run's seed.
        settings: lengths and kind of pairs.
    """
    capacity = shard.sentences  # each sample uses up at least one sentence
    arrays = [np.empty(capacity, dtype) for dtype in _COLUMN_DTYPES]
    count = _call_scan(shard, other, shard_number, epoch, seed, settings, arrays)
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
    """Return how many samples :func:`scan_shard` would give, without keeping them."""
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
