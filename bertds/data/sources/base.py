"""The interface of all sources of training rows: counts, and blocks of rows.

A source is a list of shards, and an epoch is the rows of all shards. Sample number ``i`` of an
epoch is row ``i`` in the order of the shards. Training reads whole blocks of a few shards at a time
(order.py decides which), so memory is bounded by the block.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from bertds.data.formats.token_shards import offsets_of
from bertds.data.samples.flat_rows import FlatRows
from bertds.data.vocabulary import TokenizerInfo
from bertds.errors import DataError

_EPOCHS_REMEMBERED = 4


class Block(ABC):
    """The rows of a few shards, for random access."""

    rows: int
    """The number of rows; they are numbered 0 ... rows - 1 in the order of the block's shards."""

    @abstractmethod
    def gather(self, numbers: np.ndarray, mask_rate: float | None = None) -> FlatRows:
        """Return rows by number, in the given order.

        Args:
            numbers: int64 [n].
            mask_rate: fraction of masked tokens; None = as in the source's settings. Rows that are
                already masked are returned as they are.
        """

    @abstractmethod
    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each row, int64 [n], without making the rows."""


class Source(ABC):
    """One split of a corpus."""

    tokenizer: TokenizerInfo
    seed: int
    name: str
    """The path, for messages."""
    shards: int
    """The number of shards."""
    block_rows: int
    """A block takes further shards until it has about this number of rows."""
    has_pairs: bool
    """Whether rows come with a next-sentence (or sentence-order) label."""
    sequence_length: int
    makes_masks = True
    """Whether rows are masked here, so that the rate may change; else they are already masked."""

    may_stall = False
    """Whether rows come from a store, which may be slow or unavailable for a while."""

    def __init__(self) -> None:
        self._counts: dict[int, np.ndarray] = {}
        self._lock = threading.RLock()

    @abstractmethod
    def count_rows(self, epoch: int, shard: int) -> int:
        """Return the number of rows of the shard in an epoch."""

    @abstractmethod
    def open_block(self, epoch: int, shards: Sequence[int]) -> Block:
        """Return the rows of some shards in an epoch."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain facts for the log and the run's record."""

    def read_ahead(self, shards: Iterable[int]) -> None:  # noqa: B027 - files need no notice
        """Announce the shards that are read next, soonest first, so that a store can fetch them."""

    def wait_for_repair(self) -> None:  # noqa: B027 - files need none
        """From now on, wait for rows that are missing from a store or damaged there.

        Before, they are refused at once. Called when training has begun: then a wait may save it.
        """

    def stop_waiting(self) -> None:  # noqa: B027 - files are there at once
        """End the waits of other threads for rows that have not arrived."""

    def token_counts(self) -> np.ndarray | None:
        """Return how often each token id occurs in the text, int64 [vocab_size], or None.

        Instance files repeat and mask the text, so they do not contain the counts.
        """
        return None

    def word_count(self) -> int:
        """Return the number of words of the text, or 0 if the shards do not mark words."""
        return 0

    def held_out(self) -> Source | None:
        """Return the validation split of the same data, or None if there is none."""
        return None

    def rows_by_shard(self, epoch: int) -> np.ndarray:
        """Return int64 [shards]: rows of each shard in this epoch (counted once, then cached).

        Raises:
            DataError: the epoch has no row at all, or a shard is damaged.
        """
        with self._lock:
            if epoch not in self._counts:
                counts = [self.count_rows(epoch, shard) for shard in range(self.shards)]
                if not any(counts):
                    raise DataError(
                        f"{self.name}: not enough text for a single training row; add documents"
                    )
                # Validation and training may ask for different epochs at the same time.
                while len(self._counts) >= _EPOCHS_REMEMBERED:
                    del self._counts[min(self._counts)]
                self._counts[epoch] = np.array(counts, dtype=np.int64)
            return self._counts[epoch]

    def samples_in_epoch(self, epoch: int) -> int:
        """Return the number of samples in the epoch; pairs are redrawn, so it varies slightly."""
        return int(self.rows_by_shard(epoch).sum())

    def first_samples(self, epoch: int) -> np.ndarray:
        """Return int64 [shards + 1]: the sample number at which each shard begins."""
        return offsets_of(self.rows_by_shard(epoch))

    def with_seed(self, seed: int) -> Self:
        """Return the same source, but with pairs and masks drawn from another seed."""
        if seed == self.seed:
            return self
        other = copy.copy(self)
        other.seed = seed
        other._counts = {}  # the counts depend on the seed
        return other
