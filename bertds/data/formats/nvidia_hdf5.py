"""NVIDIA's HDF5 layout of training rows: names, a writer, and a strict reader for files of others.

A file contains N rows of S tokens with P masked positions each. NeMo, DeepLearningExamples,
bing_bert and academic-budget-bert read it:

```text
input_ids             i4 [N, S]  already masked, padded with [PAD]
input_mask            i1 [N, S]  1 = real token
segment_ids           i1 [N, S]  0 up to and including the first [SEP], then 1; 0 in padding
masked_lm_positions   i4 [N, P]  ascending, padded with 0: the first 0 ends the list
masked_lm_ids         i4 [N, P]  the original ids at these positions, padded with 0
next_sentence_labels  i1 [N]     1 = random, 0 = true next; may be missing
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bertds.data.formats.hdf5_files import dataset, new_hdf5, open_hdf5, read_whole
from bertds.data.formats.token_shards import offsets_of
from bertds.errors import DataError
from bertds.system.atomic_files import atomic_path

INSTANCE_DTYPES: dict[str, np.dtype] = {
    "input_ids": np.dtype("<i4"),
    "input_mask": np.dtype("<i1"),
    "segment_ids": np.dtype("<i1"),
    "masked_lm_positions": np.dtype("<i4"),
    "masked_lm_ids": np.dtype("<i4"),
    "next_sentence_labels": np.dtype("<i1"),
}
COMPRESSIONS = ("gzip", "lzf", "none")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSettings:
    """The settings in the name of NVIDIA's folders."""

    lower_case: bool
    sequence_length: int
    max_predictions: int
    masked_lm_prob: float
    random_seed: int
    dupe_factor: int

    def name(self) -> str:
        """Return the folder name that ``create_datasets_from_start.sh`` would choose."""
        return (
            f"hdf5_lower_case_{int(self.lower_case)}_seq_len_{self.sequence_length}"
            f"_max_pred_{self.max_predictions}_masked_lm_prob_{self.masked_lm_prob:g}"
            f"_random_seed_{self.random_seed}_dupe_factor_{self.dupe_factor}"
        )

    @staticmethod
    def parse(name: str) -> FolderSettings | None:
        """Parse such a name, with or without the ``hdf5_`` prefix; None for any other name."""
        match = _FOLDER_NAME.fullmatch(name)
        if match is None:
            return None
        lower, length, predictions, probability, seed, dupe = match.groups()
        return FolderSettings(
            lower_case=lower == "1",
            sequence_length=int(length),
            max_predictions=int(predictions),
            masked_lm_prob=float(probability),
            random_seed=int(seed),
            dupe_factor=int(dupe),
        )


_FOLDER_NAME = re.compile(
    r"(?:hdf5_)?lower_case_([01])_seq_len_(\d+)_max_pred_(\d+)_masked_lm_prob_([0-9.eE-]+)"
    r"_random_seed_(\d+)_dupe_factor_(\d+)"
)


def instance_file_name(dataset: str, split: str, number: int) -> str:
    """Return ``<dataset>_<training|test>_<number>.hdf5`` (no padding zeros)."""
    return f"{dataset}_{split}_{number}.hdf5"


def write_instance_file(
    path: Path | str, columns: Mapping[str, np.ndarray], *, compression: str = "gzip"
) -> int:
    """Write one file atomically. Memory: the columns, and the file.

    Args:
        path: the final name; its folder must exist.
        columns: all rows, as arrays in the layout above; ``next_sentence_labels`` may be missing.
        compression: "gzip" (as NVIDIA's), "lzf" (4 times faster, half as dense) or "none".
            Datasets that are not compressed are contiguous, so that they can be mapped.

    Returns:
        The number of rows. The bytes depend only on the rows and the compression.

    Raises:
        ValueError: an unknown compression.
        BertdsError: the disk is full or the folder cannot be written.
    """
    typed = {
        name: columns[name].astype(dtype, copy=False)
        for name, dtype in INSTANCE_DTYPES.items()
        if name in columns
    }
    with (
        atomic_path(path) as temporary,
        new_hdf5(temporary, libver=("earliest", "v110")) as file,
    ):
        # All datasets are created before the first is filled, which decides the layout of the file.
        for name, array in typed.items():
            _create_dataset(file, name, array, compression)
        for name, array in typed.items():
            file[name][:] = array
    return len(typed["input_ids"])


def _create_dataset(file: h5py.File, name: str, array: np.ndarray, compression: str) -> None:
    if compression == "none":
        file.create_dataset(name, shape=array.shape, dtype=array.dtype, track_times=False)
        return
    # Chunks of about 1 MiB, as a compromise between compression and access to single rows.
    rest = array.shape[1:]
    chunk_rows = max(1, min(_CHUNK_BYTES // (array.itemsize * math.prod(rest)), 65_536))
    file.create_dataset(
        name,
        shape=array.shape,
        maxshape=(None, *rest),
        chunks=(chunk_rows, *rest),
        dtype=array.dtype,
        compression=compression,
        track_times=False,
    )


@dataclass(frozen=True, slots=True, eq=False)
class InstanceRows:
    """The rows of one file, checked, without padding tokens.

    ``token_ids`` is flat: row r is ``row_offsets[r] : row_offsets[r + 1]``. The masked positions
    (within the row, ascending) and ids are flat too; ``mask_offsets`` locates those of a row.
    """

    token_ids: np.ndarray
    """uint16 or int32 [T]."""
    row_offsets: np.ndarray
    """int64 [N + 1]."""
    second_start: np.ndarray
    """int16 [N]: where segment 1 begins; the length of the row if there is none."""
    masked_positions: np.ndarray
    """int16 [M]."""
    masked_ids: np.ndarray
    """As ``token_ids``, [M]."""
    mask_offsets: np.ndarray
    """int64 [N + 1]."""
    labels: np.ndarray | None
    """int8 [N], 1 = random; None if the file has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceHeader:
    """The shape of a file, known without reading its rows."""

    rows: int
    sequence_length: int
    max_predictions: int
    has_labels: bool


def read_header(path: Path | str) -> InstanceHeader:
    """Read only the shapes.

    Raises:
        DataError: not HDF5, damaged, a dataset is missing, or shapes do not agree.
    """
    with open_hdf5(path) as file:
        return header_and_datasets(Path(path), file)[0]


def read_instances(path: Path | str, vocab_size: int | None = None) -> InstanceRows:
    """Read and check a whole file; gzip allows no other access at useful speed.

    Args:
        path: an instance file by any writer.
        vocab_size: all ids must be below it; None = no check.

    Raises:
        DataError: the file is damaged or a row violates the layout; names file and row.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        header, datasets = header_and_datasets(path, file)
        arrays: dict[str, Any] = {
            name: read_whole(path, name, found) for name, found in datasets.items()
        }
    check = _Check(path)
    ids, mask = arrays["input_ids"], arrays["input_mask"] != 0
    segments, positions = arrays["segment_ids"], arrays["masked_lm_positions"]
    masked_ids = arrays["masked_lm_ids"]
    # The mask is ones, then zeros: its sum is the length of the row.
    lengths = mask.sum(axis=1, dtype=np.int64)
    column = np.arange(header.sequence_length)
    check.rows(lengths < 3, "input_mask has fewer than 3 real tokens")
    check.rows(
        (mask != (column < lengths[:, None])).any(axis=1), "input_mask is not ones, then zeros"
    )
    # Segment ids are zeros, then ones: the number of ones says where segment B starts.
    segments = np.where(mask, segments, 0)
    ones = (segments == 1).sum(axis=1)
    second_start = lengths - ones
    in_second = (column >= second_start[:, None]) & mask
    check.rows((segments != in_second).any(axis=1), "segment_ids is not zeros, then ones")
    # Ids index the word embeddings; padding may contain anything.
    limit = np.iinfo(np.int32).max if vocab_size is None else vocab_size
    bad_id = ((ids < 0) | (ids >= limit)) & mask
    check.rows(bad_id.any(axis=1), f"input_ids contains an id outside [0, {limit})")

    # The first 0 ends the list. Anything after it is padding.
    used = np.logical_and.accumulate(positions != 0, axis=1)
    outside = ((positions < 1) | (positions >= lengths[:, None])) & used
    check.rows(outside.any(axis=1), "masked_lm_positions has a position outside the row")
    descending = (positions[:, 1:] <= positions[:, :-1]) & used[:, 1:]
    check.rows(descending.any(axis=1), "masked_lm_positions is not ascending")
    bad_id = ((masked_ids < 0) | (masked_ids >= limit)) & used
    check.rows(bad_id.any(axis=1), f"masked_lm_ids contains an id outside [0, {limit})")
    labels = arrays.get("next_sentence_labels")
    if labels is not None:
        labels = labels.reshape(-1)
        check.rows((labels != 0) & (labels != 1), "next_sentence_labels is neither 0 nor 1")
        labels = labels.astype(np.int8)

    # Keep only real tokens and used positions, in the smallest type that holds the ids.
    kept_ids, kept_masked = ids[mask], masked_ids[used]
    largest = max(int(kept_ids.max(initial=0)), int(kept_masked.max(initial=0)))
    dtype = np.uint16 if largest <= 65_535 else np.int32
    return InstanceRows(
        token_ids=kept_ids.astype(dtype),
        row_offsets=offsets_of(lengths),
        second_start=second_start.astype(np.int16),
        masked_positions=positions[used].astype(np.int16),
        masked_ids=kept_masked.astype(dtype),
        mask_offsets=offsets_of(used.sum(axis=1, dtype=np.int64)),
        labels=labels,
    )


def find_instance_files(path: Path | str, split: str = "train") -> list[Path]:
    """Return the instance files of a folder, or the one file, ordered by number.

    Args:
        path: a file, a dataset's folder, or the ``hdf5_lower_case_...`` folder above datasets.
        split: "train" prefers files whose name contains ``training``, "validation" those whose name
            contains ``test``. If there are none, all files are used.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = list_instance_files(path)
    if not found:
        raise DataError(f"{path}: contains no .hdf5 files")
    wanted = "training" if split == "train" else "test"
    return [p for p in found if wanted in p.name] or found


def list_instance_files(folder: Path) -> list[Path]:
    """Return all HDF5 files of a folder or, if it has none, of its sub-folders, in order."""
    for pattern in ("*", "*/*"):
        files = [p for p in folder.glob(pattern) if p.suffix in (".hdf5", ".h5") and p.is_file()]
        if files:
            return sorted(files, key=lambda p: (str(p.parent), _natural(p.name)))
    return []


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``_2`` before ``_10``."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]


def header_and_datasets(
    path: Path, file: h5py.File
) -> tuple[InstanceHeader, dict[str, h5py.Dataset]]:
    """Check an open file against the layout; return its shape and its datasets by name.

    Raises:
        DataError: a dataset is missing or outside the file, or shapes or types do not agree.
    """
    there = {name: dataset(path, file, name) for name in INSTANCE_DTYPES}
    datasets = {name: found for name, found in there.items() if found is not None}
    required = [n for n in INSTANCE_DTYPES if n != "next_sentence_labels"]
    missing = [n for n in required if n not in datasets]
    if missing:
        raise DataError(f"{path}: not in NVIDIA's layout: {', '.join(missing)} missing")
    shapes = {n: datasets[n].shape for n in required}
    if any(shape is None or len(shape) != 2 for shape in shapes.values()):
        raise DataError(f"{path}: each dataset must have 2 dimensions, found {shapes}")
    rows, length = shapes["input_ids"]
    predictions = shapes["masked_lm_positions"][1]
    # Every dataset needs N rows, and S or P columns.
    for name in required:
        width = predictions if name.startswith("masked") else length
        if shapes[name] != (rows, width):
            raise DataError(f"{path}: {name} is {shapes[name]}, expected {(rows, width)}")
    if length > np.iinfo(np.int16).max:  # positions are stored as int16
        raise DataError(
            f"{path}: rows of {length} tokens; at most {np.iinfo(np.int16).max} are supported"
        )
    labels = datasets.get("next_sentence_labels")
    if labels is not None and labels.size != rows:
        raise DataError(f"{path}: next_sentence_labels is {labels.shape}, expected {(rows,)}")
    header = InstanceHeader(
        rows=rows,
        sequence_length=length,
        max_predictions=predictions,
        has_labels=labels is not None,
    )
    return header, datasets


class _Check:
    """Raises an error for the first row that violates a rule."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, broken: np.ndarray, rule: str) -> None:
        if broken.any():
            raise DataError(f"{self.path}: row {int(np.argmax(broken))}: {rule}")
