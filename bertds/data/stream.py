"""The endless stream of samples: blocks of a few shards, opened in the order of epochs.

```text
EpochOrder --> block --gather--> FlatRows
            (one ahead)
```
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bertds.data.formats.token_shards import offsets_of
from bertds.data.order import DataPosition, EpochOrder, advance, shard_order
from bertds.data.samples.flat_rows import FlatRows, join_rows
from bertds.data.sources.base import Block, Source


class SampleStream:
    """Random access to the endless stream of samples, fast for sequential access.

    Args:
        source: of the samples.
        seed: decides the order.
        ahead: whether to open the next block in a thread.
    """

    def __init__(self, source: Source, seed: int, ahead: bool) -> None:
        self._source, self._seed = source, seed
        self._orders: dict[int, EpochOrder] = {}
        self._current: tuple[tuple[int, int], _OpenBlock] | None = None
        self._next: tuple[tuple[int, int], Future[_OpenBlock]] | None = None
        self._pool = ThreadPoolExecutor(1, "bertds-block") if ahead else None
        self._lock = threading.Lock()

    def read(
        self, start: DataPosition, count: int, mask_rate: float | None = None
    ) -> tuple[FlatRows, np.ndarray]:
        """Return rows and their (epoch, sample number), int64 [count, 2]."""
        pieces, samples = [], []
        for span in self._spans(start, count):
            pieces.append(span.opened.block.gather(span.rows, mask_rate))
            samples.append(span.opened.identify(span.epoch, span.rows))
            del span  # frees its block before the next one is opened
        return join_rows(pieces), np.concatenate(samples)

    def read_chosen(
        self,
        start: DataPosition,
        count: int,
        choose: Callable[[np.ndarray], np.ndarray],
        mask_rate: float | None = None,
    ) -> list[tuple[FlatRows, np.ndarray]]:
        """Return chosen rows of a range of the stream, and their (epoch, sample number).

        Args:
            start: where the range begins.
            count: its number of samples.
            choose: is given all their lengths, int64 [count]; returns int64 [n, k]: n sets of k
                positions in the range, each ascending.
            mask_rate: fraction of masked tokens; None = as in the source's settings.
        """
        # The whole range stays open: the choice depends on the lengths of all its rows.
        spans = list(self._spans(start, count))
        lengths = [span.opened.block.lengths(span.rows) for span in spans]
        ends = np.cumsum([len(span.rows) for span in spans])
        result = []
        for places in choose(np.concatenate(lengths)):
            # A set may span several blocks: take from each the positions that are in it.
            pieces, samples = [], []
            parts = np.split(places, np.searchsorted(places, ends[:-1]))
            for span, part, end in zip(spans, parts, ends, strict=True):
                if len(part):
                    rows = span.rows[part - (end - len(span.rows))]
                    pieces.append(span.opened.block.gather(rows, mask_rate))
                    samples.append(span.opened.identify(span.epoch, rows))
            result.append((join_rows(pieces), np.concatenate(samples)))
        return result

    def _spans(self, start: DataPosition, count: int) -> Iterator[_Span]:
        """Yield the parts of a range that are each in one block."""
        position = advance(self._source, start, 0)
        while count:
            order = self._order(position.epoch)
            number = order.block_at(position.offset)
            opened = self._open(position.epoch, number)
            first = position.offset - order.starts[number]
            last = min(first + count, opened.block.rows)
            yield _Span(opened, position.epoch, opened.shuffle[first:last])
            del opened
            count -= last - first
            position = advance(self._source, position, last - first)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int) -> EpochOrder:
        with self._lock:
            if epoch not in self._orders:
                # The loader's thread and the reading thread work on at most two epochs at a time.
                while len(self._orders) > 2:
                    del self._orders[min(self._orders)]
                self._orders[epoch] = EpochOrder(self._source, self._seed, epoch)
            return self._orders[epoch]

    def _open(self, epoch: int, number: int) -> _OpenBlock:
        key = (epoch, number)
        if self._current is not None and self._current[0] == key:
            return self._current[1]
        self._current = None  # free the old block's memory before the new one is opened
        self._source.read_ahead(self._upcoming(epoch, number))
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == key:
            opened = waiting[1].result()
        else:
            opened = self._load(epoch, number)
        self._current = (key, opened)
        if self._pool is not None:
            blocks = len(self._order(epoch).blocks)
            following = (epoch, number + 1) if number + 1 < blocks else (epoch + 1, 0)
            self._next = (following, self._pool.submit(self._load, *following))
        return opened

    def _upcoming(self, epoch: int, number: int) -> Iterator[int]:
        """Yield the shards that are read from a block on, in this epoch and the next one."""
        for block in self._order(epoch).blocks[number:]:
            yield from block
        # The order of the shards is known before their rows have been counted.
        yield from shard_order(self._seed, epoch + 1, self._source.shards)

    def _load(self, epoch: int, number: int) -> _OpenBlock:
        order = self._order(epoch)
        shards = order.blocks[number]
        block = self._source.open_block(epoch, shards)
        firsts = self._source.first_samples(epoch)
        counts = self._source.rows_by_shard(epoch)[shards]
        starts = offsets_of(counts)
        assert block.rows == starts[-1], f"{block.rows} rows, but {starts[-1]} were counted"
        return _OpenBlock(block, order.shuffle(number), starts, firsts[shards])


@dataclass(slots=True)
class _OpenBlock:
    """A block with the order of its rows and the sample numbers of its shards."""

    block: Block
    shuffle: np.ndarray
    starts: np.ndarray
    first_samples: np.ndarray

    def identify(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Return (epoch, sample number) of rows of the block, int64 [n, 2]."""
        part = np.searchsorted(self.starts, rows, side="right") - 1
        names = np.empty((len(rows), 2), np.int64)
        names[:, 0] = epoch
        names[:, 1] = rows - self.starts[part] + self.first_samples[part]
        return names


@dataclass(slots=True)
class _Span:
    """A range of the stream that is in one block."""

    opened: _OpenBlock
    epoch: int
    rows: np.ndarray
