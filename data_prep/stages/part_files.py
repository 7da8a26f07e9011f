"""Part files: the documents of one unit, sorted by key, between the stages of preparation.

A part is raw arrays after a one-line JSON header, so any range of its documents is a slice of a
memory map. ``payload`` contains token ids, or UTF-8 text before the vocabulary is trained.
``lengths`` counts ids (or bytes) per sentence.

```text
key_high, key_low  uint64 [D]    hash of the document's text, keyed by the seed; sorted
sources            uint8  [D]    number of the source
sentence_ends      int64  [D]    running sum of sentences
payload_ends       int64  [D]    running sum of payload items
lengths            int32  [S]    items per sentence
payload            uint16 | uint32 | uint8 [T]
bands              uint64 [B * D]  hashes of MinHash bands, band by band (empty without MinHash)
repeat_high, _low  uint64 [R]    keys of the repetitions of documents (``--mix``); sorted
repeat_of          int32  [R]    number of the repeated document
note_ends          int64  [D]    running sum of the bytes of notes (empty without --keep-dropped)
notes              uint8  [N]    a line of JSON per document
```
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertds.errors import DataError
from bertds.system.atomic_files import atomic_path
from bertds.system.json_fields import parse_json
from data_prep.sources.reading import unreadable

_HEADER_BYTES = 4096
_NAMES = (
    "key_high",
    "key_low",
    "sources",
    "sentence_ends",
    "payload_ends",
    "lengths",
    "payload",
    "bands",
    "repeat_high",
    "repeat_low",
    "repeat_of",
    "note_ends",
    "notes",
)


class PartDocument(NamedTuple):
    """A document to be written to a part."""

    key: tuple[int, int]
    source: int
    lengths: np.ndarray
    payload: np.ndarray
    bands: np.ndarray | None = None
    """uint64 [B], hashes of its MinHash bands."""
    repeats: tuple[tuple[int, int], ...] = ()
    """Keys of its repetitions."""
    note: bytes = b""
    """A line of JSON that describes it (``--keep-dropped``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The arrays of a part, mapped or in memory."""

    key_high: np.ndarray
    key_low: np.ndarray
    sources: np.ndarray
    sentence_ends: np.ndarray
    payload_ends: np.ndarray
    lengths: np.ndarray
    payload: np.ndarray
    bands: np.ndarray
    repeat_high: np.ndarray
    repeat_low: np.ndarray
    repeat_of: np.ndarray
    note_ends: np.ndarray
    notes: np.ndarray

    @property
    def documents(self) -> int:
        """The number of documents."""
        return len(self.key_high)

    def range(self, low: int, high: int) -> tuple[int, int]:
        """Return the numbers ``[first, end)`` of the documents with ``low <= key < high``."""
        first = int(np.searchsorted(self.key_high, np.uint64(low)))
        if high >= 1 << 64:
            return first, self.documents
        return first, int(np.searchsorted(self.key_high, np.uint64(high)))

    def repeats(self, low: int, high: int) -> tuple[int, int]:
        """Return the range of the repetitions with ``low <= key < high``."""
        first = int(np.searchsorted(self.repeat_high, np.uint64(low)))
        if high >= 1 << 64:
            return first, len(self.repeat_high)
        return first, int(np.searchsorted(self.repeat_high, np.uint64(high)))

    def band(self, number: int) -> np.ndarray:
        """Return the hashes of one MinHash band, uint64 [D]."""
        return self.bands[number * self.documents : (number + 1) * self.documents]

    def note(self, number: int) -> bytes:
        """Return the line that describes a document; empty without ``--keep-dropped``."""
        if len(self.note_ends) == 0:
            return b""
        begin = int(self.note_ends[number - 1]) if number else 0
        return bytes(self.notes[begin : int(self.note_ends[number])])

    def sentences_of(self, number: int) -> tuple[int, int]:
        """Return the sentence range of a document."""
        return int(self.sentence_ends[number - 1]) if number else 0, int(self.sentence_ends[number])

    def payload_of(self, number: int) -> tuple[int, int]:
        """Return the payload range of a document."""
        return int(self.payload_ends[number - 1]) if number else 0, int(self.payload_ends[number])


def write_part(path: Path, documents: Iterable[PartDocument], payload_type: np.dtype) -> None:
    """Sort documents by key and write them atomically."""
    # Equal texts are ordered by source, because the first one is kept.
    ordered = sorted(documents, key=lambda d: (d.key, d.source))
    keys = np.array([d.key for d in ordered], dtype=np.uint64).reshape(-1, 2)
    empty = [np.zeros(0, np.int32)]
    bands = [d.bands for d in ordered if d.bands is not None]
    notes = b"".join(d.note for d in ordered)
    note_ends = np.cumsum([len(d.note) for d in ordered], dtype=np.int64)
    repeats = sorted((*key, n) for n, d in enumerate(ordered) for key in d.repeats)
    arrays: dict[str, np.ndarray] = {
        "key_high": keys[:, 0],
        "key_low": keys[:, 1],
        "sources": np.array([d.source for d in ordered], dtype=np.uint8),
        "sentence_ends": np.cumsum([len(d.lengths) for d in ordered], dtype=np.int64),
        "payload_ends": np.cumsum([len(d.payload) for d in ordered], dtype=np.int64),
        "lengths": np.concatenate([d.lengths for d in ordered] or empty).astype(np.int32),
        "payload": np.concatenate([d.payload for d in ordered] or empty).astype(payload_type),
        "bands": np.stack(bands, axis=1).reshape(-1) if bands else np.zeros(0, np.uint64),
        "repeat_high": np.array([high for high, _, _ in repeats], np.uint64),
        "repeat_low": np.array([low for _, low, _ in repeats], np.uint64),
        "repeat_of": np.array([number for _, _, number in repeats], np.int32),
        "note_ends": note_ends if notes else np.zeros(0, np.int64),
        "notes": np.frombuffer(notes, np.uint8),
    }
    # The header has a fixed size, so the arrays' positions do not depend on its length.
    header: list[tuple[str, str, int, int]] = []
    position = _HEADER_BYTES
    for name in _NAMES:
        array = arrays[name]
        header.append((name, array.dtype.str, len(array), position))
        position += -(-array.nbytes // 8) * 8
    with atomic_path(path, durable=False) as temporary, open(temporary, "wb") as file:
        file.write(json.dumps(header).encode().ljust(_HEADER_BYTES, b" "))
        for name, _, _, at in header:
            file.seek(at)
            file.write(np.ascontiguousarray(arrays[name]).data)
        file.truncate(position)


def open_part(path: Path) -> Part:
    """Map a part into memory.

    Raises:
        BertdsError: it is missing or damaged, although its completion marker was valid, or the disk
            has an error.
    """
    try:
        # Every shard opens every part. np.memmap, and slicing it, would take several times as long.
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = parse_json(mapped[:_HEADER_BYTES])
        arrays = {name: np.frombuffer(mapped, kind, count, at) for name, kind, count, at in header}
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataError(
            f"{path}: damaged part ({error}); remove it and run this command again"
        ) from error
    return Part(**arrays)
