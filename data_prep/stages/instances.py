"""Stage 3 (``--instances``): training rows with fixed masks, in NVIDIA's HDF5 layout.

A pass over a shard gives a block of rows; there are ``dupe_factor`` passes. Blocks are distributed
over files so that no file has two passes over the same document. The rows of a file are shuffled.
Every shard, pass and file has its own random stream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.manifest import ShardInfo
from bertds.data.formats.nvidia_hdf5 import FolderSettings, instance_file_name, write_instance_file
from bertds.data.formats.padded_columns import empty_columns
from bertds.data.formats.token_shards import TokenShard
from bertds.data.rng import FILE_ORDER, SPLIT_ROWS, derive_key, permutation
from bertds.data.samples.flat_rows import flat_instances, place_flat_rows
from bertds.data.samples.pairing import count_shard, partner_number
from bertds.data.vocabulary import TokenizerInfo
from data_prep.settings import PrepSettings
from data_prep.stages.markers import inputs_hash, read_marker, write_marker

_BLOCKS_PER_FILE = 2
"""Passes per file, each over a shard of 4 million tokens; about 0.3 GB of memory at 512 tokens."""
_SPLIT_NAMES = {"train": "training", "validation": "test"}


class InstanceTask(NamedTuple):
    """The work of writing one file of rows."""

    out: Path
    file: Path
    marker: Path
    split: str
    number: int
    blocks: tuple[tuple[int, int], ...]
    """(shard, pass) pairs."""
    shards: tuple[ShardInfo, ...]
    """All shards of the split."""
    rows: RowSettings
    settings: PrepSettings
    tokenizer: TokenizerInfo
    inputs: str

    def earlier(self) -> dict[str, Any] | None:
        """Return the result in a valid marker of an earlier run, or None."""
        return read_marker(self.marker, self.out / self.file, self.inputs)


def folder_settings(settings: PrepSettings, rows: RowSettings) -> FolderSettings:
    """Return the settings that the folder's name contains."""
    return FolderSettings(
        lower_case=settings.lower_case,
        sequence_length=rows.sequence_length,
        max_predictions=rows.max_predictions,
        masked_lm_prob=rows.masked_lm_prob,
        random_seed=settings.seed,
        dupe_factor=settings.dupe_factor,
    )


def deal_blocks(shards: int, passes: int) -> list[tuple[tuple[int, int], ...]]:
    """Distribute (shard, pass) blocks over files; no file gets two passes over one shard."""
    files = max(passes, -(-shards * passes // _BLOCKS_PER_FILE))
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(files)]
    for shard in range(shards):
        for one_pass in range(passes):
            # A shard's passes have consecutive numbers, and files >= passes, so all differ.
            dealt[(shard * passes + one_pass) % files].append((shard, one_pass))
    return [tuple(blocks) for blocks in dealt]


def instance_tasks(
    out: Path,
    work: Path,
    splits: dict[str, list[ShardInfo]],
    settings: PrepSettings,
    tokenizer: TokenizerInfo,
) -> list[InstanceTask]:
    """Return a task for every file of every ``--instances``."""
    tasks = []
    for rows in settings.instances:
        name = folder_settings(settings, rows).name()
        for split, shards in splits.items():
            if not shards:
                continue
            # A file depends on all shards of its split, since pairs are drawn across shards.
            inputs = inputs_hash(shard.sha256 for shard in shards)
            for number, blocks in enumerate(deal_blocks(len(shards), settings.dupe_factor)):
                file = instance_file_name(settings.dataset, _SPLIT_NAMES[split], number)
                tasks.append(
                    InstanceTask(
                        out=out,
                        file=Path(name) / settings.dataset / file,
                        marker=work / f"rows-{rows.sequence_length}-{split}-{number}.json",
                        split=split,
                        number=number,
                        blocks=blocks,
                        shards=tuple(shards),
                        rows=rows,
                        settings=settings,
                        tokenizer=tokenizer,
                        inputs=inputs,
                    )
                )
    return tasks


def instance_entries(
    settings: PrepSettings, results: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the manifest's ``instances`` from the results in the markers."""
    entries = []
    for rows in settings.instances:
        name = folder_settings(settings, rows).name()
        own = [r for r in results if r["file"].startswith(f"{name}/")]
        entries.append(
            {
                "folder": name,
                "dataset": settings.dataset,
                "sequence_length": rows.sequence_length,
                "max_predictions": rows.max_predictions,
                "masked_lm_prob": rows.masked_lm_prob,
                "dupe_factor": settings.dupe_factor,
                "files": [
                    {
                        "file": r["file"],
                        "bytes": r["file_bytes"],
                        "sha256": r["file_sha256"],
                        "rows": r["rows"],
                    }
                    for r in sorted(own, key=lambda r: r["file"])
                ],
            }
        )
    return entries


def rows_seed(seed: int, split: str) -> int:
    """Return the seed of a split's rows: each split numbers its shards from 0."""
    return derive_key(seed, SPLIT_ROWS, 0 if split == "train" else 1)


def write_rows(task: InstanceTask) -> dict[str, Any]:
    """Make and write the rows of one file, and return the result in its marker."""
    settings = task.rows
    shards = _MappedShards(task.out, task.shards, task.tokenizer.fingerprint)
    seed = rows_seed(task.settings.seed, task.split)
    # Rows are counted first, so that each is written directly to its shuffled place.
    count = sum(_count_rows(shards, *block, settings, seed) for block in task.blocks)
    order = permutation(derive_key(seed, FILE_ORDER, task.number), count)
    places = np.empty_like(order)  # position in the file of the n-th row that is made
    places[order] = np.arange(count)
    columns = empty_columns(
        count,
        settings.sequence_length,
        settings.max_predictions,
        labels=settings.pairs != "none",
    )
    first = 0
    for shard, one_pass in task.blocks:
        for flat in flat_instances(shards, one_pass, settings, seed, task.tokenizer, [shard]):
            own = places[first : first + flat.rows]
            place_flat_rows(flat, columns, own, task.tokenizer.special_ids["pad"])
            first += flat.rows
    path = task.out / task.file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_instance_file(path, columns, compression=task.settings.compression)
    result = {"file": task.file.as_posix(), "rows": count}
    return write_marker(task.marker, path, result, task.inputs)


def _count_rows(
    shards: _MappedShards, number: int, one_pass: int, settings: RowSettings, seed: int
) -> int:
    other = number
    if settings.pairs == "nsp":
        other = partner_number(seed, one_pass, number, [shard.documents for shard in shards])
    return count_shard(
        shards[number],
        shards[other],
        shard_number=number,
        epoch=one_pass,
        seed=seed,
        settings=settings,
    )


class _MappedShards(Sequence[TokenShard]):
    """All shards of a split; counts come from the manifest, and only a few shards are mapped."""

    def __init__(self, out: Path, infos: Sequence[ShardInfo], fingerprint: str) -> None:
        self._out, self._infos, self._fingerprint = out, infos, fingerprint
        self._open: OrderedDict[int, TokenShard] = OrderedDict()

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._infos)  # callers iterate for the counts, which ShardInfo has

    def __getitem__(self, number: int) -> TokenShard:  # type: ignore[override]
        if number not in self._open:
            info = self._infos[number]
            self._open[number] = TokenShard.open(
                self._out / info.file, info, verify="size", fingerprint=self._fingerprint
            )
            # The oldest one is closed: a task reads few shards at a time.
            if len(self._open) > 4:
                self._open.popitem(last=False)
        return self._open[number]
