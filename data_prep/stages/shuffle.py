"""Stage 2: all documents in the order of their keys -> validation and training shards.

The key of a document is a keyed hash of its text, so sorting by key shuffles the documents. The
lowest keys are the validation split. The rest is divided into shards of about equal token counts.
A shard is a range of keys, gathered as one slice from every part. Equal keys are duplicates.

Repetitions (selection/mixing.py) have their own keys and are only in the training shards. The first
training shard also takes repetitions whose keys are in the validation range. A repetition of a
held-out document is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.data.formats.token_shards import offsets_of, shard_name, write_token_shard
from bertds.data.tokenizer_json import WORD_START
from bertds.display import words
from bertds.errors import DataError
from bertds.system.storage import join, upload
from data_prep.document import DUPLICATE, NEAR_DUPLICATE
from data_prep.selection.drop_log import DropLog
from data_prep.stages.markers import read_marker, write_marker
from data_prep.stages.near_duplicates import Dropped, load_dropped, no_near_duplicates
from data_prep.stages.part_files import Part, open_part

_BUCKET_BITS = 20
_ALL = 1 << 64


class ShardRange(NamedTuple):
    """The keys ``[low, high)`` of one shard, as 64-bit integers."""

    split: str
    number: int
    low: int
    high: int
    held_out: int = 0
    """Documents with keys below this one are the validation split."""


class ShardTask(NamedTuple):
    """The work of writing one shard."""

    range: ShardRange
    parts: tuple[Path, ...]
    out: Path
    marker: Path
    vocab_size: int
    fingerprint: str
    sources: tuple[str, ...]
    """Names of all sources, in their order."""
    near: Path | None = None
    """The file with the keys of near-duplicates."""
    keep_duplicates: bool = False
    keep_dropped: bool = False
    inputs: str = ""
    word_starts: bool = False
    """Whether the ids contain WORD_START bits."""
    url: str = ""
    """The output folder in a store, to which a complete shard is uploaded."""

    @property
    def path(self) -> Path:
        """The path of the shard."""
        return self.out / self.range.split / shard_name(self.range.number)

    def earlier(self) -> dict[str, Any] | None:
        """Return the result in a valid marker of an earlier run, or None."""
        return read_marker(self.marker, self.path, self.inputs)


def plan_shards(
    parts: Sequence[Path],
    shard_tokens: int,
    validation_fraction: float,
    near: Dropped | None = None,
) -> list[ShardRange]:
    """Divide the keys into the validation split and shards.

    Memory: two histograms, and the keys of the validation documents.

    Args:
        parts: all parts.
        shard_tokens: approximate number of tokens per shard.
        validation_fraction: fraction of the documents to hold out.
        near: keys of near-duplicates, which are not written.

    Raises:
        DataError: there are no documents, or too few for the split.
    """
    near = near or no_near_duplicates()
    documents = sum(int(_live(open_part(part), near).sum()) for part in parts)
    if documents == 0:
        raise DataError(
            "no documents are left: the sources are empty, or all documents were dropped"
        )
    held_out = 0
    # The key of the last held-out document is the limit. 2 documents more must remain for training.
    if validation_fraction > 0:
        wanted = max(2, round(validation_fraction * documents))
        keys = _lowest_keys(parts, wanted + 2, near)
        if len(keys) < wanted + 2:
            raise DataError(
                f"only {words.count(len(keys), 'distinct document')}, but at least {wanted + 2} "
                f"are needed to hold out {wanted}; add documents or set --validation-fraction 0"
            )
        held_out = int(keys[wanted - 1]) + 1
    ranges = []
    for split, low, high in (("validation", 0, held_out), ("train", held_out, _ALL)):
        if high > low:
            edges = _edges(parts, low, high, shard_tokens, near)
            ranges += [
                ShardRange(split, number, edges[number], edges[number + 1], held_out)
                for number in range(len(edges) - 1)
            ]
    return ranges


def _live(part: Part, near: Dropped) -> np.ndarray:
    """Return which documents of a part are not near-duplicates, bool [D]."""
    return ~near.holds(part.key_high, part.key_low)


def _lowest_keys(parts: Sequence[Path], count: int, near: Dropped) -> np.ndarray:
    """Return the ``count`` lowest distinct keys, sorted (fewer if there are fewer)."""
    found = np.zeros(0, np.uint64)
    for path in parts:
        part = open_part(path)
        # Only keys below the highest one found so far can belong to the result.
        _, end = part.range(0, int(found[-1]) if len(found) == count else _ALL)
        keys = part.key_high[:end]
        found = np.union1d(found, keys[~near.holds(keys, part.key_low[:end])])[:count]
    return found


def _edges(
    parts: Sequence[Path], low: int, high: int, shard_tokens: int, near: Dropped
) -> list[int]:
    """Return the limits of shards of about equal token counts; each has at least one document."""
    # A histogram of tokens over key ranges: exact enough, and of fixed size.
    shift = np.uint64(64 - _BUCKET_BITS)
    tokens = np.zeros(1 << _BUCKET_BITS)
    for path in parts:
        part = open_part(path)
        first, end = part.range(low, high)
        lengths = np.diff(part.payload_ends, prepend=0)
        own = lengths[first:end] * _live(part, near)[first:end]
        buckets = (part.key_high[first:end] >> shift).astype(np.int64)
        np.add.at(tokens, buckets, own)
        if high == _ALL:
            # The first training shard also takes repetitions with lower keys. (Validation ranges
            # end below _ALL, so this is training.)
            good = part.key_high[part.repeat_of] >= np.uint64(low)
            good &= _live(part, near)[part.repeat_of]
            again = part.repeat_of[good]
            buckets = (np.maximum(part.repeat_high[good], np.uint64(low)) >> shift).astype(np.int64)
            np.add.at(tokens, buckets, lengths[again])
    # Place the limits where the running sum of tokens passes equal shares of the total.
    running = np.cumsum(tokens)
    shards = max(1, -(-int(running[-1]) // shard_tokens))
    targets = running[-1] * np.arange(1, shards) / shards
    buckets = np.unique(np.searchsorted(running, targets) + 1)
    inner = [int(b) << int(shift) for b in buckets.tolist() if running[b - 1] < running[-1]]
    return [low, *(edge for edge in inner if low < edge < high), high]


class _Columns(NamedTuple):
    """Entries of a shard: each is a document, or a repetition of one."""

    high: np.ndarray
    low: np.ndarray
    source: np.ndarray
    again: np.ndarray
    """bool, whether it is a repetition."""
    place: np.ndarray
    """Its place in the lists of contents."""

    def take(self, which: np.ndarray) -> _Columns:
        """Return some of the entries."""
        return _Columns(*(column[which] for column in self))


class _Content(NamedTuple):
    """The content of an entry, copied from its part.

    A mapped part takes one of the files that a process may have open, by default 1,024. A large
    corpus has more parts, and many shards have entries of nearly all of them.
    """

    ids: np.ndarray
    lengths: np.ndarray
    """int32 [S], tokens per sentence."""
    note: bytes


def _entries(task: ShardTask, near: Dropped) -> tuple[_Columns, list[_Content]]:
    """Return all entries in the task's range of keys, part by part."""
    one = task.range
    first_train = one.split == "train" and one.number == 0
    columns: list[_Columns] = []
    contents: list[_Content] = []
    for path in task.parts:
        part = open_part(path)
        documents = np.arange(*part.range(one.low, one.high))
        again = np.zeros(0, np.int64)
        if one.split == "train":
            again = np.arange(*part.repeats(0 if first_train else one.low, one.high))
            # Leave out repetitions of held-out documents, and of those that are not written.
            of = part.repeat_of[again]
            good = part.key_high[of] >= np.uint64(one.held_out)
            good &= ~near.holds(part.key_high[of], part.key_low[of])
            again = again[good]
        if len(documents) + len(again) == 0:
            continue
        numbers = np.concatenate([documents, part.repeat_of[again].astype(np.int64)])
        columns.append(
            _Columns(
                high=np.concatenate([part.key_high[documents], part.repeat_high[again]]),
                low=np.concatenate([part.key_low[documents], part.repeat_low[again]]),
                source=part.sources[numbers],
                again=np.arange(len(numbers)) >= len(documents),
                place=np.arange(len(contents), len(contents) + len(numbers)),
            )
        )
        payload = _ranges(part.payload_ends, numbers).tolist()
        sentences = _ranges(part.sentence_ends, numbers).tolist()
        for number, (begin, end), (first, last) in zip(numbers.tolist(), payload, sentences):
            contents.append(
                _Content(
                    part.payload[begin:end].copy(),
                    part.lengths[first:last].copy(),
                    part.note(number),
                )
            )
    return _Columns(*(np.concatenate(column) for column in zip(*columns))), contents


def _ranges(ends: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return begin and end of some of the pieces whose ends are given as running sums."""
    begins = ends[np.maximum(numbers - 1, 0)]
    begins[numbers == 0] = 0
    return np.stack([begins, ends[numbers]], axis=1)


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Gather one range of keys from all parts and write it; return the result in its marker."""
    # Sort by key and source. Of equal texts, the one of the first source is kept.
    near = load_dropped(task.near)
    found, contents = _entries(task, near)
    found = found.take(np.lexsort((found.source, found.low, found.high)))
    # Equal keys are duplicates: 128 bits never collide in practice.
    same = np.zeros(len(found.high), np.bool_)
    if not task.keep_duplicates:
        same[1:] = (found.high[1:] == found.high[:-1]) & (found.low[1:] == found.low[:-1])
    alike = near.holds(found.high, found.low) & ~found.again & ~same
    # Record what is dropped. A repetition is not a document, so it is not counted.
    log = DropLog(task.sources, task.keep_dropped)
    for reason, which in ((DUPLICATE, same & ~found.again), (NEAR_DUPLICATE, alike)):
        gone = found.take(np.flatnonzero(which))
        for source, place in zip(gone.source.tolist(), gone.place.tolist()):
            log.drop(source, reason, contents[place].note)
    log.save(task.marker.with_suffix(".dropped"))
    # Counts per source, for the manifest.
    kept = found.take(np.flatnonzero(~same & ~alike))
    names = [task.sources[source] for source in kept.source.tolist()]
    repeated = Counter(name for name, again in zip(names, kept.again.tolist()) if again)
    written = Counter(names) - repeated

    # Join tokens and sentence lengths of the kept entries, in the order of their keys.
    own = [contents[place] for place in kept.place.tolist()]
    tokens = np.concatenate([content.ids for content in own])
    lengths = [content.lengths for content in own]
    info = write_token_shard(
        task.path,
        tokens & ~WORD_START if task.word_starts else tokens,
        offsets_of(np.concatenate(lengths)),
        offsets_of([len(one) for one in lengths]),
        vocab_size=task.vocab_size,
        fingerprint=task.fingerprint,
        word_starts=tokens >= WORD_START if task.word_starts else None,
    )
    result = {
        "split": task.range.split,
        "number": task.range.number,
        "info": asdict(info),
        "written": dict(sorted(written.items())),
        "repeated": dict(sorted(repeated.items())),
        "dropped": log.counts_json(),
    }
    # Uploaded before the marker is written: a valid marker means that the copy exists too.
    if task.url:
        upload(task.path, join(task.url, info.file))
    return write_marker(task.marker, task.path, result, task.inputs, info.sha256)
