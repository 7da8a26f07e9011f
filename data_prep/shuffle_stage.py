"""Stage 2: all documents in the order of their keys -> validation and training shards.

The key of a document is a keyed hash of its text, so the order is a shuffle that no worker has to
draw. The lowest keys are the validation split; the rest is cut into shards of about equal tokens.
A shard is a range of keys, gathered as one slice from every part; equal keys are duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.data.shards import shard_name, write_token_shard
from bertds.errors import DataError
from data_prep.markers import read_marker, write_marker
from data_prep.parts import Part, open_part
from data_prep.sources import SOURCE_KINDS

_BUCKET_BITS = 20
_ALL = 1 << 64


class ShardRange(NamedTuple):
    """The keys ``[low, high)`` of one shard."""

    split: str
    number: int
    low: int
    high: int


class ShardTask(NamedTuple):
    """One shard to write."""

    range: ShardRange
    parts: tuple[Path, ...]
    out: Path
    marker: Path
    vocab_size: int
    fingerprint: str
    inputs: str = ""

    @property
    def path(self) -> Path:
        """The shard's file."""
        return self.out / self.range.split / shard_name(self.range.number)

    def earlier(self) -> dict[str, Any] | None:
        """Return what a valid marker of an earlier run says."""
        return read_marker(self.marker, self.path, self.inputs)


def plan_shards(
    parts: Sequence[Path], shard_tokens: int, validation_fraction: float
) -> list[ShardRange]:
    """Cut the keys into the validation split and shards.

    Memory: two histograms, and the keys of the validation documents.

    Raises:
        DataError: there are no documents, or too few for the split.
    """
    documents = sum(open_part(part).documents for part in parts)
    if documents == 0:
        raise DataError("no document is left: the sources are empty, or all were dropped")
    held_out = 0
    if validation_fraction > 0:
        wanted = max(2, round(validation_fraction * documents))
        keys = _lowest_keys(parts, wanted + 2)
        if len(keys) < wanted + 2:
            raise DataError(
                f"{len(keys)} different documents are too few to hold {wanted} of them out and "
                "train on 2 or more; add documents or set --validation-fraction 0"
            )
        held_out = int(keys[wanted - 1]) + 1
    ranges = []
    for split, low, high in (("validation", 0, held_out), ("train", held_out, _ALL)):
        if high > low:
            edges = _edges(parts, low, high, shard_tokens)
            ranges += [
                ShardRange(split, number, edges[number], edges[number + 1])
                for number in range(len(edges) - 1)
            ]
    return ranges


def _lowest_keys(parts: Sequence[Path], count: int) -> np.ndarray:
    """Return the ``count`` lowest different keys, sorted (fewer if there are fewer)."""
    found = np.zeros(0, np.uint64)
    for path in parts:
        keys = np.unique(open_part(path).key_high)[:count]
        found = np.union1d(found, keys)[:count]
    return found


def _edges(parts: Sequence[Path], low: int, high: int, shard_tokens: int) -> list[int]:
    """Return the limits of shards of about equal tokens, each with a document in it."""
    shift = np.uint64(64 - _BUCKET_BITS)
    tokens = np.zeros(1 << _BUCKET_BITS)
    for path in parts:
        part = open_part(path)
        first, end = part.range(low, high)
        lengths = np.diff(part.payload_ends, prepend=0)[first:end]
        buckets = (part.key_high[first:end] >> shift).astype(np.int64)
        tokens += np.bincount(buckets, weights=lengths, minlength=len(tokens))
    running = np.cumsum(tokens)
    shards = max(1, -(-int(running[-1]) // shard_tokens))
    targets = running[-1] * np.arange(1, shards) / shards
    buckets = np.unique(np.searchsorted(running, targets) + 1)
    inner = [int(b) << int(shift) for b in buckets.tolist() if running[b - 1] < running[-1]]
    return [low, *(edge for edge in inner if low < edge < high), high]


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Gather one range of keys from all parts and write it; return what its marker records."""
    columns: list[np.ndarray] = []
    opened: list[Part] = []
    for path in task.parts:
        part = open_part(path)
        first, end = part.range(task.range.low, task.range.high)
        if end > first:
            numbers = np.arange(first, end)
            columns.append(
                np.stack(
                    [
                        part.key_high[first:end],
                        part.key_low[first:end],
                        part.sources[first:end].astype(np.uint64),
                        np.full(end - first, len(opened), np.uint64),
                        numbers.astype(np.uint64),
                    ]
                )
            )
            opened.append(part)
    high, low, source, owner, number = np.concatenate(columns, axis=1)
    order = np.lexsort((source, low, high))
    same = np.zeros(len(order), np.bool_)
    same[1:] = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    duplicates = Counter(SOURCE_KINDS[s] for s in source[order[same]].tolist())
    kept = order[~same]
    written = Counter(SOURCE_KINDS[s] for s in source[kept].tolist())

    ids, lengths, sentence_counts = [], [], []
    for where, index in zip(owner[kept].tolist(), number[kept].tolist()):
        part = opened[where]
        begin, end = part.payload_of(index)
        ids.append(part.payload[begin:end])
        begin, end = part.sentences_of(index)
        lengths.append(part.lengths[begin:end])
        sentence_counts.append(end - begin)
    info = write_token_shard(
        task.path,
        np.concatenate(ids),
        _offsets(np.concatenate(lengths)),
        _offsets(np.array(sentence_counts)),
        vocab_size=task.vocab_size,
        fingerprint=task.fingerprint,
    )
    result = {
        "split": task.range.split,
        "number": task.range.number,
        "info": asdict(info),
        "written": dict(sorted(written.items())),
        "duplicates": dict(sorted(duplicates.items())),
    }
    return write_marker(task.marker, task.path, result, task.inputs)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
