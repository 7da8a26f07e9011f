"""Sentence lengths of every shard of a split, in one mapped file of the cache.

The number of rows per epoch follows from the lengths alone. They are 10% of the corpus. With them
on the machine, the order of a new epoch is known without reading from the store.

```text
outline-ID   [checksums: uint32 per shard][tokens per sentence, sentences per document: uint32 ...]
```

A shard's range counts only if its checksum matches. So a process that was killed while writing
leaves nothing wrong behind, and several processes may write the same range at once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
import zlib
from collections.abc import Sequence

import numpy as np

from bertds.data.formats.manifest import ShardInfo
from bertds.data.formats.token_shards import TokenShard, offsets_of
from bertds.data.remote.cache import OUTLINE, ShardCache


def outline_bytes(infos: Sequence[ShardInfo]) -> int:
    """Return the size of a split's outlines in bytes."""
    return 4 * sum(1 + info.sentences + info.documents for info in infos)


class Outlines:
    """The outlines of one split.

    Args:
        cache: contains the file, and keeps it while this object lives.
        infos: the shards of the split, in order.

    Raises:
        NoRoom: the cache has no room for them.
    """

    def __init__(self, cache: ShardCache, infos: Sequence[ShardInfo]) -> None:
        self._infos = infos
        named = hashlib.sha256(" ".join(info.sha256 for info in infos).encode()).hexdigest()
        descriptor = cache.reserve(f"{OUTLINE}{named[:32]}", outline_bytes(infos))
        self._mapping = mmap.mmap(descriptor, 0)
        weakref.finalize(self, os.close, descriptor)
        words = np.frombuffer(self._mapping, np.uint32)
        self._checksums = words[: len(infos)]
        counts = np.array([info.sentences + info.documents for info in infos], np.int64)
        self._starts = len(infos) + offsets_of(counts)
        self._words = words

    def get(self, number: int) -> TokenShard | None:
        """Return a shard with its offsets but without its tokens, or None if not known yet."""
        known = int(self._checksums[number])
        stretch = self._stretch(number)
        if not known or known != _checksum(stretch):  # 0: never written, so nothing to read
            return None
        info = self._infos[number]
        sentences, documents = stretch[: info.sentences], stretch[info.sentences :]
        return TokenShard.outline(info.file, sentences, documents)

    def put(self, number: int, shard: TokenShard) -> None:
        """Store the lengths of a verified shard."""
        stretch = self._stretch(number)
        sentences = self._infos[number].sentences
        stretch[:sentences] = np.diff(shard.sentence_offsets)
        stretch[sentences:] = np.diff(shard.document_offsets)
        self._checksums[number] = _checksum(stretch)

    def _stretch(self, number: int) -> np.ndarray:
        return self._words[self._starts[number] : self._starts[number + 1]]


def _checksum(stretch: np.ndarray) -> int:
    # 0 means "not written", which an empty file's zeros must keep meaning.
    return zlib.crc32(stretch.data) or 1
