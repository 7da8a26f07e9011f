"""Near-duplicates of a whole corpus (``--dedup minhash``), between tokenizing and shuffling.

Every document in the parts has the hashes of its bands (selection/minhash.py). Documents with an
equal band are linked. Of each connected group one document is kept: from the first source in the
order of the manifest, there the longest, and of equally long ones the one with the lowest key. So
the choice depends only on the documents.

Links are found by tasks, one per band and range of hash values. A task reads one column of all
parts and sorts the values in its range, about 200 MB for a corpus of any size. The groups are
joined in one process with 16 bytes per document.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.system.atomic_files import atomic_path
from bertds.system.numba_jit import compiled
from data_prep.stages.markers import read_marker, write_marker
from data_prep.stages.part_files import open_part

DOCUMENTS_AT_ONCE = 1 << 22
"""Per task: 16 bytes each, and as much again while they are sorted."""


class LinkTask(NamedTuple):
    """The documents whose hash of one band is in one range."""

    band: int
    low: int
    high: int
    parts: tuple[Path, ...]
    out: Path
    marker: Path
    inputs: str

    def earlier(self) -> dict[str, Any] | None:
        """Return the result in a valid marker of an earlier run, or None."""
        return read_marker(self.marker, self.out, self.inputs)


class Dropped(NamedTuple):
    """The keys of near-duplicates, sorted by their upper halves."""

    high: np.ndarray
    low: np.ndarray

    def holds(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Return for each key whether it is a near-duplicate's, bool [n]."""
        if len(self.high) == 0:
            return np.zeros(len(high), np.bool_)
        found = np.searchsorted(self.high, high)
        found = np.minimum(found, len(self.high) - 1)
        hit: np.ndarray = (self.high[found] == high) & (self.low[found] == low)
        return hit


def no_near_duplicates() -> Dropped:
    """Return an empty set of keys, for a corpus that was not searched."""
    return Dropped(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def save_dropped(path: Path, dropped: Dropped) -> None:
    """Write the keys for the tasks of the next stage."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.stack(dropped))


def load_dropped(path: Path | None) -> Dropped:
    """Map the keys that :func:`save_dropped` wrote; None means that there are none."""
    if path is None:
        return no_near_duplicates()
    high, low = np.load(path, mmap_mode="r")
    return Dropped(high, low)


def link_tasks(
    parts: Sequence[Path], documents: int, bands: int, folder: Path, inputs: str
) -> list[LinkTask]:
    """Return the tasks of all bands.

    Args:
        parts: all parts. They are not opened.
        documents: number of documents in them.
        bands: number of bands.
        folder: for the links.
        inputs: identifies what the links depend on.
    """
    ranges = max(1, -(-documents // DOCUMENTS_AT_ONCE))
    edges = [(1 << 64) * i // ranges for i in range(ranges + 1)]
    return [
        LinkTask(
            band=band,
            low=edges[i],
            high=edges[i + 1],
            parts=tuple(parts),
            out=folder / f"band-{band}-{i}.npy",
            marker=folder / f"band-{band}-{i}.json",
            inputs=inputs,
        )
        for band in range(bands)
        for i in range(ranges)
    ]


def write_links(task: LinkTask) -> dict[str, Any]:
    """Find the links of one task: pairs of document numbers, which count through all parts."""
    codes, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    first = 0
    for path in task.parts:
        part = open_part(path)
        own = part.band(task.band)
        chosen = np.flatnonzero((own >= np.uint64(task.low)) & (own <= np.uint64(task.high - 1)))
        codes.append(own[chosen])
        numbers.append(chosen + first)
        first += part.documents
    code, number = np.concatenate(codes), np.concatenate(numbers)
    # Equal hashes are neighbours after sorting. Linking neighbours is enough to connect them all.
    order = np.argsort(code, kind="stable")
    code, number = code[order], number[order]
    equal = np.flatnonzero(code[1:] == code[:-1])
    links = np.stack([number[equal], number[equal + 1]], axis=1)
    with atomic_path(task.out) as temporary, open(temporary, "wb") as file:
        np.save(file, links)
    return write_marker(task.marker, task.out, {"links": len(links)}, task.inputs)


def choose(parts: Sequence[Path], links: Sequence[Path]) -> Dropped:
    """Join linked documents into groups; return the keys of all but one document per group."""
    # A union-find over all documents, with one parent per document.
    documents = sum(open_part(part).documents for part in parts)
    parent = np.arange(documents)
    for path in links:
        _join(parent, np.load(path))
    _flatten(parent)
    # Only groups of two or more matter from here on.
    members = np.bincount(parent, minlength=documents)
    columns = []
    first = 0
    for path in parts:
        part = open_part(path)
        own = np.flatnonzero(members[parent[first : first + part.documents]] > 1)
        lengths = np.diff(part.payload_ends, prepend=0)[own]
        columns.append(
            (
                parent[first + own],
                part.sources[own],
                -lengths,
                part.key_high[own],
                part.key_low[own],
            )
        )
        first += part.documents
    if not columns:
        return no_near_duplicates()
    group, source, length, high, low = (np.concatenate(c) for c in zip(*columns))
    # In this order the first document of each group is the one to keep.
    order = np.lexsort((low, high, length, source, group))
    group, high, low = group[order], high[order], low[order]
    stays = np.ones(len(group), np.bool_)
    stays[1:] = group[1:] != group[:-1]
    # Equal texts have equal bands, so they are in one group, and are kept or dropped together.
    at = np.maximum.accumulate(np.where(stays, np.arange(len(group)), 0))
    goes = (high != high[at]) | (low != low[at])
    keys = np.unique(np.stack([high[goes], low[goes]], axis=1), axis=0)
    return Dropped(keys[:, 0].copy(), keys[:, 1].copy())


@compiled
def _root(parent, number):
    # Path halving: each visited entry then points to its grandparent.
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


@compiled
def _join(parent, links):
    for i in range(len(links)):
        a, b = _root(parent, links[i, 0]), _root(parent, links[i, 1])
        parent[max(a, b)] = min(a, b)  # the lowest number, so that the order of links is irrelevant


@compiled
def _flatten(parent):
    for number in range(len(parent)):
        parent[number] = _root(parent, number)
