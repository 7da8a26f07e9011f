"""The order of an epoch: a pure function of (seed, epoch, position), in O(shards) memory.

```text
shards of the epoch, shuffled     s7 s2 | s0 s5 s1 | s6 s3 s4
grouped into blocks of a few      block 0  block 1   block 2   (about Source.block_rows rows each)
rows shuffled inside each block
```

So reads are large and local, any position is found without a replay, and the only state to save is
a counter. The stream of training samples is epoch 0, epoch 1, ... without a gap. Ranks and micro
batches take their rows from it afterwards.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from bertds.data.rng import SAMPLE_ORDER, SHARD_ORDER, derive_key, permutation
from bertds.data.sources.base import Source


@dataclass(frozen=True, slots=True)
class DataPosition:
    """A position in the endless stream of samples: the next one is ``offset`` of ``epoch``."""

    epoch: int = 0
    offset: int = 0


def shard_order(seed: int, epoch: int, shards: int) -> list[int]:
    """Return the order in which an epoch reads its shards, int [shards]."""
    # A function of the number of shards only, so it is known before any rows are counted.
    return [int(n) for n in permutation(derive_key(seed, SHARD_ORDER, epoch), shards)]


class EpochOrder:
    """Maps positions of one epoch to blocks of shards, and to rows in them."""

    def __init__(self, source: Source, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        counts = self._counts = source.rows_by_shard(epoch)
        self.blocks: list[list[int]] = []
        self.starts = [0]
        # A block is closed when the next shard would exceed block_rows.
        for shard in shard_order(seed, epoch, source.shards):
            rows = int(counts[shard])
            here = self.starts[-1] - self.starts[-2] if self.blocks else 0
            if not self.blocks or here + rows > source.block_rows:
                self.blocks.append([])
                self.starts.append(self.starts[-1])
            self.blocks[-1].append(shard)
            self.starts[-1] += rows

    def block_at(self, offset: int) -> int:
        """Return the number of the block that contains a position."""
        return bisect_right(self.starts, offset) - 1

    def offset_of(self, shard: int, row: int) -> int:
        """Return the position of a row of a shard."""
        block = next(number for number, shards in enumerate(self.blocks) if shard in shards)
        before = self.blocks[block][: self.blocks[block].index(shard)]
        place = row + int(self._counts[before].sum())
        return self.starts[block] + int(np.flatnonzero(self.shuffle(block) == place)[0])

    def shuffle(self, block: int) -> np.ndarray:
        """Return int64 [rows of the block]: which row is at each position of the block."""
        rows = self.starts[block + 1] - self.starts[block]
        return permutation(derive_key(self.seed, SAMPLE_ORDER, self.epoch, block), rows)


def advance(source: Source, position: DataPosition, samples: int) -> DataPosition:
    """Return the position ``samples`` further on, across as many epochs as needed."""
    epoch, offset = position.epoch, position.offset + samples
    while offset >= (rows := source.samples_in_epoch(epoch)):
        epoch, offset = epoch + 1, offset - rows
    return DataPosition(epoch, offset)
