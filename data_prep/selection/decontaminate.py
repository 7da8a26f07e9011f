"""Drops documents that contain text of a downstream task's test split.

The method is that of GPT-3 (arXiv:2005.14165, appendix C). An overlap is a run of N words; case,
punctuation and spacing do not count. N is 13. A shorter example is matched as a whole if it has 8
words or more, which is their smallest N; shorter ones would match by chance. GPT-3 cut out 200
characters around a match and kept the rest. Here the whole document is dropped, which a BERT corpus
can afford.

The n-grams of all files are one table of 64-bit hashes. It takes 16 to 32 bytes per n-gram in each
worker. A corpus of 4 billion words has a false match with a million n-grams with a probability of
0.02%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertds.errors import ConfigError, DataError
from bertds.system.atomic_files import atomic_path, sha256_file
from bertds.system.numba_jit import compiled
from data_prep.selection.task_texts import task_texts
from data_prep.selection.words import ngram_hashes, word_hashes

SHORTEST_EXAMPLE = 8
"""In words; shorter examples are ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestFile:
    """A file of ``--decontaminate``, as the manifest names it."""

    name: str
    sha256: str
    texts: int
    """Number of texts that are searched for."""
    too_short: int
    """Number of texts of fewer than 8 words, which are ignored."""


def check_ngram(ngram: int) -> None:
    """Refuse an impossible ``--decontaminate-ngram``."""
    if not SHORTEST_EXAMPLE <= ngram <= 100:
        raise ConfigError(f"--decontaminate-ngram {ngram}: allowed: {SHORTEST_EXAMPLE} to 100")


class NgramTable(NamedTuple):
    """The n-grams that are searched for."""

    hashes: np.ndarray
    """uint64, sorted."""
    lengths: tuple[int, ...]
    """The n-gram lengths that occur, in words: N, and those of short whole examples."""

    def save(self, path: Path) -> None:
        """Write the table for :meth:`Overlaps.load`: number of lengths, the lengths, the hashes."""
        head = np.array([len(self.lengths), *self.lengths], np.uint64)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate([head, self.hashes]))

    @staticmethod
    def load(path: Path) -> NgramTable:
        """Read what :meth:`save` wrote."""
        values = np.load(path)
        count = int(values[0])
        return NgramTable(values[1 + count :], tuple(map(int, values[1 : 1 + count])))


def read_test_files(
    paths: Sequence[str | Path], ngram: int
) -> tuple[tuple[TestFile, ...], NgramTable]:
    """Return descriptions of the files, and the hashes of their n-grams.

    Raises:
        DataError: a file cannot be read, or has no text of at least 8 words.
    """
    files, hashes = [], [np.zeros(0, np.uint64)]
    lengths = set()
    for given in paths:
        path = Path(given)
        texts = too_short = 0
        for text in task_texts(path):
            words = word_hashes(text)
            if len(words) < SHORTEST_EXAMPLE:
                too_short += len(words) > 0
                continue
            texts += 1
            lengths.add(min(ngram, len(words)))
            hashes.append(ngram_hashes(words, min(ngram, len(words))))
        if texts == 0:
            raise DataError(
                f"--decontaminate {path}: contains no text of at least {SHORTEST_EXAMPLE} words"
            )
        files.append(
            TestFile(name=path.name, sha256=sha256_file(path), texts=texts, too_short=too_short)
        )
    # The order of the options must not change the manifest.
    files.sort(key=lambda file: (file.name, file.sha256))
    return tuple(files), NgramTable(np.unique(np.concatenate(hashes)), tuple(sorted(lengths)))


class Overlaps:
    """Finds the n-grams of the test files in a text."""

    def __init__(self, table: NgramTable) -> None:
        # A power of two, so that a bit mask gives the slot; at most half of the slots are in use.
        size = 1 << max(10, int(2 * len(table.hashes)).bit_length())
        self._slots = np.zeros(size, np.uint64)
        _fill(self._slots, table.hashes)
        self._lengths = table.lengths

    @staticmethod
    @lru_cache(maxsize=2)
    def load(path: Path) -> Overlaps:
        """Return this process's instance for a saved table; it is loaded once."""
        return Overlaps(NgramTable.load(path))

    def found_in(self, text: str) -> bool:
        """Return whether the text holds an n-gram of the test files."""
        words = word_hashes(text)
        return any(_any_in(ngram_hashes(words, n), self._slots) for n in self._lengths)


@compiled
def _fill(table, hashes):
    mask = np.uint64(len(table) - 1)
    for code in hashes:
        slot = np.int64(code & mask)
        while table[slot] != 0:
            slot = (slot + 1) & np.int64(mask)
        table[slot] = code


@compiled
def _any_in(codes, table):
    mask = np.uint64(len(table) - 1)
    for code in codes:
        slot = np.int64(code & mask)
        while table[slot] != 0:
            if table[slot] == code:
                return True
            slot = (slot + 1) & np.int64(mask)
    return False
