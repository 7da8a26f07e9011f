"""Rows read from NVIDIA's HDF5 files, with the pairs and masks that the files contain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertds.data.formats.nvidia_hdf5 import (
    FolderSettings,
    InstanceRows,
    find_instance_files,
    list_instance_files,
    read_header,
    read_instances,
)
from bertds.data.formats.token_shards import offsets_of
from bertds.data.samples.flat_rows import FlatRows
from bertds.data.sources.base import Block, Source
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.data.vocabulary_file import has_tokenizer
from bertds.errors import DataError

BLOCK_BYTES = 256 << 20
"""The size of a block in memory; two exist at a time, the current and the next one."""


class InstanceBlock(Block):
    """All rows of a few files, unpadded, in memory."""

    def __init__(self, files: Sequence[InstanceRows], with_labels: bool) -> None:
        self._tokens = np.concatenate([f.token_ids for f in files])
        self._token_starts = _joined([f.row_offsets for f in files])
        self._seconds = np.concatenate([f.second_start for f in files])
        self._positions = np.concatenate([f.masked_positions for f in files])
        self._masked = np.concatenate([f.masked_ids for f in files])
        self._mask_starts = _joined([f.mask_offsets for f in files])
        labels = [f.labels for f in files if f.labels is not None]
        self._labels = np.concatenate(labels) if with_labels else None
        self.rows = len(self._seconds)

    def gather(self, numbers: np.ndarray, mask_rate: float | None = None) -> FlatRows:
        """Copy rows from the block."""
        row_offsets, tokens = _ranges(self._token_starts, numbers)
        mask_offsets, masks = _ranges(self._mask_starts, numbers)
        lengths, masked = np.diff(row_offsets), np.diff(mask_offsets)
        positions = np.arange(row_offsets[-1]) - np.repeat(row_offsets[:-1], lengths)
        seconds = np.repeat(self._seconds[numbers].astype(np.int64), lengths)
        # Positions in the files are relative to the row; those of FlatRows index the flat arrays.
        in_row = self._positions[masks].astype(np.int64)
        return FlatRows(
            self._tokens[tokens].astype(np.int64),
            (positions >= seconds).astype(np.int64),
            positions,
            row_offsets,
            in_row + np.repeat(row_offsets[:-1], masked),
            self._masked[masks].astype(np.int64),
            mask_offsets,
            None if self._labels is None else self._labels[numbers].astype(np.int64),
        )

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Return how many tokens rows have."""
        return self._token_starts[numbers + 1] - self._token_starts[numbers]


def _joined(offsets: Sequence[np.ndarray]) -> np.ndarray:
    return offsets_of(np.concatenate([np.diff(o) for o in offsets]))


def _ranges(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [n + 1] row offsets in the output, and flat indices of all rows' elements."""
    lengths = starts[rows + 1] - starts[rows]
    offsets = offsets_of(lengths)
    return offsets, np.arange(offsets[-1]) + np.repeat(starts[rows] - offsets[:-1], lengths)


class InstanceSource(Source):
    """The files of one dataset. Each file is a shard; every epoch has the same rows."""

    makes_masks = False

    def __init__(
        self,
        path: Path,
        tokenizer: TokenizerInfo,
        seed: int,
        *,
        split: str,
        sequence_length: int,
        with_pairs: bool,
    ) -> None:
        super().__init__()
        self.name, self.seed, self.tokenizer = str(path), seed, tokenizer
        self._files = find_instance_files(path, split)
        self._headers = [read_header(file) for file in self._files]
        self.shards = len(self._files)
        self.sequence_length = sequence_length
        first = self._headers[0]
        # All files must fit the recipe, and agree on whether rows have a label.
        for file, header in zip(self._files, self._headers, strict=True):
            if header.sequence_length > sequence_length:
                raise DataError(
                    f"{file}: rows of {header.sequence_length} tokens, but "
                    f"data.sequence_length={sequence_length}; raise it"
                )
            if header.has_labels != first.has_labels:
                raise DataError(
                    f"{file}: {'contains' if header.has_labels else 'does not contain'} "
                    f"next_sentence_labels, unlike {self._files[0]}; all files must be alike"
                )
        self.has_pairs = with_pairs and first.has_labels
        self.max_predictions = max(header.max_predictions for header in self._headers)
        # Bytes per unpadded row at most: ids are 2 bytes, a masked position takes 4.
        row_bytes = 2 * sequence_length + 4 * first.max_predictions + 32
        self.block_rows = max(1, BLOCK_BYTES // row_bytes)
        self._path, self._split, self._with_pairs = path, split, with_pairs

    def held_out(self) -> InstanceSource | None:
        """Return the ``test`` files of the folder, or None if there are none."""
        if self._path.is_file() or not any(
            "test" in file.name for file in list_instance_files(self._path)
        ):
            return None
        return InstanceSource(
            self._path,
            self.tokenizer,
            self.seed,
            split="validation",
            sequence_length=self.sequence_length,
            with_pairs=self._with_pairs,
        )

    def count_rows(self, epoch: int, shard: int) -> int:
        """Return the number of rows of a file."""
        return self._headers[shard].rows

    def open_block(self, epoch: int, shards: Sequence[int]) -> InstanceBlock:
        """Read some files as a whole."""
        files = [read_instances(self._files[n], self.tokenizer.vocab_size) for n in shards]
        return InstanceBlock(files, self.has_pairs)

    def describe(self) -> dict[str, Any]:
        """Return plain facts for the log and the run's record."""
        return {
            "kind": "NVIDIA HDF5",
            "path": self.name,
            "shards": self.shards,
            "split": self._split,
            "rows": sum(header.rows for header in self._headers),
            "sequence_length": self.sequence_length,
            "max_predictions": self.max_predictions,
            "pairs": "nsp" if self.has_pairs else "none",
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }


def find_tokenizer(path: Path, vocab: str, lower_case: bool | None) -> TokenizerInfo:
    """Return the tokenizer of instance files: ``vocab``, or the one in a folder above them.

    A folder that preparation wrote has ``tokenizer/`` next to ``hdf5_lower_case_...``; the casing
    may also be in the name of that folder.

    Raises:
        DataError: no vocabulary is given and none is found.
    """
    above = [path, *path.absolute().parents[:3]]
    if lower_case is None:
        named = [FolderSettings.parse(folder.name) for folder in above]
        lower_case = next((s.lower_case for s in named if s is not None), None)
    if vocab:
        return _wordpiece(path, load_tokenizer_info(vocab, lower_case))
    for folder in above:
        if has_tokenizer(folder / "tokenizer"):
            return _wordpiece(path, load_tokenizer_info(folder / "tokenizer", lower_case))
    raise DataError(
        f"{path}: NVIDIA HDF5 files do not include a vocabulary; set data.vocab to their vocab.txt"
    )


def _wordpiece(path: Path, tokenizer: TokenizerInfo) -> TokenizerInfo:
    if not tokenizer.is_wordpiece:
        raise DataError(
            f"{path}: NVIDIA HDF5 is only for BERT's WordPiece, but this tokenizer is "
            f"{tokenizer.model}; train on the token shards that preparation writes"
        )
    return tokenizer
