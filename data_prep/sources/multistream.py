"""The index that Wikimedia publishes with a multistream dump: the offsets of its bzip2 streams.

```text
enwiki-20240101-pages-articles-multistream.xml.bz2          streams of 100 pages each
enwiki-20240101-pages-articles-multistream-index.txt.bz2    lines offset:page id:title, one per page
```

With the index a dump is cut exactly at its streams. Without it, workers search for the headers of
streams themselves (data_prep/sources/blocks.py), which costs little and gives the same result.
An index that does not fit its dump (of another date, or of a truncated dump) is not used.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from bertds.errors import DataError
from bertds.system.stored_path import FilePath
from data_prep.sources.blocks import STREAM_HEADER, whole_blocks
from data_prep.sources.reading import file_facts, open_binary

_DUMP_NAME = re.compile(r"multistream(\d*)\.xml(.*)$")
_INDEX_NAME = re.compile(r"multistream-index\d*\.txt")
_HEADER_BYTES = 10
_PROBES = 64


def is_index(path: FilePath) -> bool:
    """Return whether a file is an index, by its name."""
    return bool(_INDEX_NAME.search(path.name))


def index_name(dump: FilePath) -> str:
    """Return the name of a dump's index; "" if the dump's name is not one of Wikimedia's."""
    name = _DUMP_NAME.sub(r"multistream-index\1.txt\2", dump.name)
    return "" if name == dump.name else name


def index_beside(dump: FilePath) -> FilePath | None:
    """Return the index next to a dump, compressed or not; None if there is none."""
    name = index_name(dump)
    if not name:
        return None
    for candidate in (dump.with_name(name), dump.with_name(name.removesuffix(".bz2"))):
        if candidate.is_file():
            return candidate
    return None


@lru_cache(maxsize=4)
def stream_offsets(index: FilePath, dump: FilePath) -> tuple[int, ...]:
    """Return the offsets of a dump's streams in bytes, ascending, with 0 first.

    Raises:
        DataError: the file is not an index, or not the index of this dump.
    """
    # The first stream holds the header of the XML and is not in the index.
    offsets = [0]
    rest = b""
    for block, _ in whole_blocks(index):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        _take(lines, offsets, index)
    _take([rest] if rest.strip() else [], offsets, index)
    size = file_facts(dump).st_size
    ascending = all(a < b for a, b in pairwise(offsets))
    if len(offsets) < 2 or not ascending or offsets[-1] >= size:
        raise DataError(f"{index}: not the index of {dump.name} (offsets up to {offsets[-1]:,})")
    with open_binary(dump) as file:
        # The last one and some of the others: the index of another dump fails at nearly all.
        for offset in {*offsets[:: max(1, len(offsets) // _PROBES)], offsets[-1]}:
            file.seek(offset)
            if not STREAM_HEADER.match(file.read(_HEADER_BYTES)):
                raise DataError(
                    f"{index}: not the index of {dump.name} (no stream at byte {offset:,})"
                )
    return tuple(offsets)


def _take(lines: list[bytes], offsets: list[int], index: FilePath) -> None:
    for line in lines:
        offset = line[: line.find(b":")]
        if not offset.isdigit():
            found = line[:40].decode("utf-8", "replace")
            raise DataError(f"{index}: expected offset:page id:title, found {found!r}")
        # About a hundred lines in a row name the same stream.
        if int(offset) != offsets[-1]:
            offsets.append(int(offset))


def cuts(offsets: tuple[int, ...], size: int, step: int) -> list[tuple[int, int]]:
    """Return byte ranges of whole streams, each of ``step`` bytes or more except the last."""
    ranges = []
    start = 0
    for offset in (*offsets[1:], size):
        if offset - start >= step or offset == size:
            ranges.append((start, offset))
            start = offset
    return ranges
