"""Batches for training and validation, as CPU tensors of real tokens only.

```text
Source --EpochOrder--> blocks --gather--> FlatRows --cut--> StepBatch of MicroBatches
           (order.py)   (one ahead)      (this rank's rows)        |
                                     a background thread, prefetch_steps ahead
```

Global batch k is the samples ``[k * B, (k + 1) * B)`` of the endless stream of epochs. Rank r takes
the rows ``[r * B / W, (r + 1) * B / W)`` of it, and its micro batches are cut from those in order.
So every world size and micro batch sees the same samples in the same optimizer step. With
``data.balance: tokens`` the rows of the global batch are distributed by their lengths instead
(balance.py): the same samples in the same step, but on other ranks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from bertds.config.batch_plan import BatchPlan
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import DataConfig
from bertds.data.balance import balance_rows
from bertds.data.batches import MicroBatch, StepBatch, cut, pad_to_budget
from bertds.data.order import DataPosition, advance
from bertds.data.samples.flat_rows import FlatRows, join_rows
from bertds.data.sources.base import Source
from bertds.data.sources.open import open_source
from bertds.data.stream import SampleStream
from bertds.errors import ConfigError, StoreError
from bertds.system.fault_points import passed

__all__ = [
    "BatchLoader",
    "DataPosition",
    "MicroBatch",
    "StepBatch",
    "open_source",
    "validation_batches",
]

_VALIDATION_EPOCH = 0


class BatchLoader:
    """An endless iterator over this rank's ``StepBatch`` objects, prepared ahead in a thread.

    Args:
        source: the result of ``open_source``.
        data_config: ``prefetch_steps``, ``balance``, ``pack_tokens`` and
            ``max_predictions_per_sequence`` are used.
        batch_plan: a ``bertds.config.batch_plan.BatchPlan``.
        rank: of this process.
        start: where the first global batch begins; a resumed run passes the last ``next``.
        seed: decides order, pairs and masks.
        pin: put batches into pinned memory, from which a GPU copies without waiting.
        ramp: the global batch of each step; None = ``batch_plan`` throughout.
        mask_rate: the fraction of masked tokens of each step; None = the source's own.
        first_step: the number of the first global batch, for ``ramp`` and ``mask_rate``.

    Raises:
        ConfigError: the masking rate is to change, but the rows are already masked.
        DataError: the source is damaged or gives no rows. Errors that appear later are raised by
            the iteration.
    """

    def __init__(
        self,
        source: Source,
        data_config: DataConfig,
        batch_plan: BatchPlan,
        rank: int,
        *,
        start: DataPosition = DataPosition(),  # noqa: B008 - immutable
        seed: int,
        pin: bool = False,
        ramp: BatchRamp | None = None,
        mask_rate: MaskRate | None = None,
        first_step: int = 0,
    ) -> None:
        if mask_rate is not None and not source.makes_masks:
            raise ConfigError(
                f"data.masked_lm_prob_end={mask_rate.last}: the rows of {source.name} are already "
                "masked; prepare token shards, or omit it"
            )
        self._source = source.with_seed(seed)
        self._config = data_config
        self._plan_of = ramp.at if ramp is not None else lambda _: batch_plan
        self._rate_of = mask_rate.at if mask_rate is not None else lambda _: None
        self._first_step = first_step
        self.may_stall = source.may_stall
        self._rank = rank
        self._start = start
        self._pin = pin
        self.stall_seconds = 0.0
        """Total time that the training loop has waited for batches."""
        # Count here and not in the thread, so that bad data is reported before the first step.
        rows = self._source.samples_in_epoch(start.epoch)
        # If one batch spans several blocks, reading ahead would open blocks of other ranks.
        self._stream = SampleStream(
            self._source, seed, ahead=rows > 4 * batch_plan.global_batch_size
        )
        self._queue: queue.Queue[StepBatch | BaseException] = queue.Queue(
            max(1, data_config.prefetch_steps)
        )
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._held: StepBatch | BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="bertds-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            raise StopIteration
        self.wait(None)
        item, self._held = self._held, None
        assert item is not None
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        return item

    def wait(self, seconds: float | None) -> bool:
        """Wait for the next batch, at most ``seconds`` (None = without a limit).

        Returns:
            Whether ``next`` will return the batch, or raise the error in its place, at once.
        """
        if self._held is None and self._failure is None:
            began = time.perf_counter()
            # 0 seconds: look without blocking. None: block without a limit.
            with suppress(queue.Empty):
                self._held = self._queue.get(seconds != 0.0, seconds)
            self.stall_seconds += time.perf_counter() - began
        return self._held is not None or self._failure is not None

    def has_batch(self) -> bool:
        """Return whether the next batch is ready, without waiting; a store's error is not one."""
        return self.wait(0.0) and self.gave_up is None

    @property
    def gave_up(self) -> StoreError | None:
        """The error that the store did not give the next batch in time, or None."""
        return self._held if isinstance(self._held, StoreError) else None

    def close(self) -> None:
        """Stop the thread; may be called twice."""
        self._closed.set()
        self._source.stop_waiting()
        # The thread may be blocked on a full queue: make room until it sees that it is closed.
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.02)
        self._stream.close()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self) -> None:
        position, step = self._start, self._first_step
        try:
            while not self._closed.is_set():
                batch = passed("data.batch", self._make(position, step))
                position, step = batch.next, step + 1
                self._put(batch)
                self._source.wait_for_repair()
        except BaseException as error:
            self._put(error)  # raised by the iterator after the batches before it

    def _put(self, item: StepBatch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _make(self, position: DataPosition, step: int) -> StepBatch:
        plan, mask_rate = self._plan_of(step), self._rate_of(step)
        by_tokens = self._config.balance == "tokens"
        cut_rows = self._cut_by_tokens if by_tokens else self._cut_by_rows
        micro_batches, samples = cut_rows(position, plan, mask_rate)
        # Counted before fillers are added: throughput and loss scale use real tokens only.
        masked = sum(batch.masked for batch in micro_batches)
        real = sum(batch.input_ids.numel() for batch in micro_batches)
        if self._config.pack_tokens:
            budget, most = self._config.pack_tokens, self._config.max_predictions_per_sequence
            micro_batches = [pad_to_budget(batch, budget, most) for batch in micro_batches]
        if self._pin:
            micro_batches = [micro_batch.pin() for micro_batch in micro_batches]
        return StepBatch(
            micro_batches=micro_batches,
            masked_tokens=masked,
            real_tokens=real,
            samples=samples,
            next=advance(self._source, position, plan.global_batch_size),
            plan=plan,
        )

    def _cut_by_rows(
        self, position: DataPosition, plan: BatchPlan, mask_rate: float | None
    ) -> tuple[list[MicroBatch], np.ndarray]:
        """Cut this rank's rows, which are adjacent in the global batch."""
        mine = plan.global_batch_size // plan.world_size
        start = advance(self._source, position, self._rank * mine)
        flat, samples = self._stream.read(start, mine, mask_rate)
        return cut(flat, plan.micro_batch_size, self._source.sequence_length), samples

    def _cut_by_tokens(
        self, position: DataPosition, plan: BatchPlan, mask_rate: float | None
    ) -> tuple[list[MicroBatch], np.ndarray]:
        """Cut this rank's rows, which may be anywhere in the global batch."""
        each = plan.gradient_accumulation_steps
        mine = slice(self._rank * each, (self._rank + 1) * each)

        def choose(lengths: np.ndarray) -> np.ndarray:
            return balance_rows(lengths, each * plan.world_size)[mine]

        chosen = self._stream.read_chosen(position, plan.global_batch_size, choose, mask_rate)
        length = self._source.sequence_length
        batches = [batch for flat, _ in chosen for batch in cut(flat, flat.rows, length)]
        return batches, np.concatenate([samples for _, samples in chosen])


def validation_batches(
    source: Source,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    *,
    seed: int,
    max_samples: int | None = None,
    mask_rate: float | None = None,
) -> Iterator[MicroBatch]:
    """Yield this rank's share of a source, each sample once, always with the same pairs and masks.

    All ranks together cover every sample exactly once, at any world size. A rank may get fewer rows
    than another, or none. The rows are those of epoch 0, in the order of the shards.

    Args:
        source: the result of ``open_source`` for the split.
        micro_batch_size: rows per micro batch; the last one may be smaller.
        rank: of this process.
        world_size: number of processes.
        seed: decides pairs and masks.
        max_samples: take this number of samples, evenly spread over the split; None or 0 = all.
        mask_rate: fraction of masked tokens; None = the source's own.
    """
    source = source.with_seed(seed)
    firsts = source.first_samples(_VALIDATION_EPOCH)
    # Choose samples evenly over the split, and give each rank a contiguous part of them.
    total = int(firsts[-1])
    wanted = total if not max_samples else min(max_samples, total)
    numbers = np.arange(wanted) * total // wanted
    mine = numbers[rank * wanted // world_size : (rank + 1) * wanted // world_size]
    shard_of = np.searchsorted(firsts, mine, side="right") - 1
    rest: FlatRows | None = None
    source.read_ahead(np.unique(shard_of).tolist())
    for shard in np.unique(shard_of):
        block = source.open_block(_VALIDATION_EPOCH, [int(shard)])
        rows = mine[shard_of == shard] - firsts[shard]
        # A few micro batches at a time, so that memory is small for a shard of any size.
        step = micro_batch_size * max(1, 4_096 // micro_batch_size)
        for begin in range(0, len(rows), step):
            flat = block.gather(rows[begin : begin + step], mask_rate)
            # Rows of the previous chunk that did not fill a micro batch come first.
            if rest is not None:
                flat = join_rows([rest, flat])
            batches = cut(flat, micro_batch_size, source.sequence_length)
            rest = None
            if batches[-1].rows < micro_batch_size:
                batches.pop()
                rest = flat.last(flat.rows - len(batches) * micro_batch_size)
            yield from batches
    if rest is not None:
        yield from cut(rest, micro_batch_size, source.sequence_length)
