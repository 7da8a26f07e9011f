"""Statistics for the report of a preparation: lengths of documents and sentences, and rows.

Documents are in random order, so a few shards represent all. The page states how many were read.
Everything is computed from the shards, so the page always has the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.manifest import Manifest, ShardInfo
from bertds.data.formats.token_shards import TokenShard
from bertds.errors import DataError

_SHARDS_READ = 8
_ROWS_OF_A_SHARD = 2048
USUAL_ROWS = {"sequence_length": 128, "max_predictions": 20}
"""Shown without --instances: the rows that the first phase of training usually makes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lengths:
    """Lengths of documents and sentences in some training shards; int64 arrays."""

    shards: int
    """Number of shards that were read."""
    tokens_per_document: np.ndarray
    sentences_per_document: np.ndarray
    tokens_per_sentence: np.ndarray
    unknown: float
    """Share of tokens that are [UNK]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """Statistics of some training rows of one length."""

    sequence_length: int
    max_predictions: int
    rows: int
    tokens: np.ndarray
    """int64 [N]: real tokens of each row, [CLS] and [SEP] included."""
    masked: np.ndarray
    """int64 [N]: number of masked positions in each row."""
    label: float | None
    """Share of rows with next_sentence_label 1; None without pairs."""
    mask_token: float
    """Share of the masked positions that show [MASK]; next fields: a random token, the original."""
    random_token: float
    kept_token: float


def _chosen_shards(manifest: Manifest) -> Sequence[ShardInfo]:
    infos = manifest.splits["train"].shards
    return infos[:: max(1, -(-len(infos) // _SHARDS_READ))]


def read_lengths(out: Path, manifest: Manifest) -> Lengths:
    """Read lengths from up to 8 training shards, evenly spaced."""
    documents, sentences, tokens, unknown, total = [], [], [], 0, 0
    chosen = _chosen_shards(manifest)
    for info in chosen:
        shard = TokenShard.open(out / info.file, info, verify="size")
        # Differences of offsets are lengths.
        starts = np.asarray(shard.sentence_offsets)
        tokens.append(np.diff(starts))
        borders = np.asarray(shard.document_offsets)
        sentences.append(np.diff(borders))
        documents.append(np.diff(starts[borders]))
        ids = np.asarray(shard.token_ids)
        unknown += int(np.count_nonzero(ids == manifest.tokenizer.special_ids["unk"]))
        total += len(ids)
    return Lengths(
        shards=len(chosen),
        tokens_per_document=np.concatenate(documents),
        sentences_per_document=np.concatenate(sentences),
        tokens_per_sentence=np.concatenate(tokens),
        unknown=unknown / max(1, total),
    )


def read_rows(out: Path, manifest: Manifest) -> list[Rows]:
    """Make some rows of these shards, as stage 3 does."""
    # Imported here, because it loads a compiler, which takes a second.
    from bertds.data.formats.padded_columns import join_columns
    from bertds.data.samples.flat_rows import build_instances
    from data_prep.stages.instances import rows_seed

    found = []
    settings = manifest.settings
    shards = [
        TokenShard.open(out / info.file, info, verify="size") for info in _chosen_shards(manifest)
    ]
    for request in settings["instances"] or [USUAL_ROWS]:
        row_settings = RowSettings.from_mapping(settings, **request)
        chunks: list[dict[str, np.ndarray]] = []
        try:
            # One chunk of each shard, so that the sample is spread over the corpus.
            for number in range(len(shards)):
                rows = build_instances(
                    shards,
                    0,
                    row_settings,
                    rows_seed(settings["seed"], "train"),
                    tokenizer=manifest.tokenizer,
                    shard_numbers=[number],
                    chunk_rows=_ROWS_OF_A_SHARD,
                )
                chunks += islice(rows, 1)
        except DataError:  # a corpus of one document has no pairs, so there is nothing to show
            continue
        columns = join_columns(chunks)
        found.append(_describe(request, columns, manifest, settings["pairs"] != "none"))
    return found


def _describe(
    request: dict[str, int], columns: dict[str, np.ndarray], manifest: Manifest, pairs: bool
) -> Rows:
    # Position 0 is [CLS], which is never masked: it marks an unused slot.
    positions = columns["masked_lm_positions"].astype(np.int64)
    rows, places = np.nonzero(positions)
    shown = columns["input_ids"][rows, positions[rows, places]]
    truth = columns["masked_lm_ids"][rows, places]
    masked = shown == manifest.tokenizer.special_ids["mask"]
    kept = (shown == truth) & ~masked
    count = max(1, len(rows))
    return Rows(
        sequence_length=request["sequence_length"],
        max_predictions=request["max_predictions"],
        rows=len(positions),
        tokens=columns["input_mask"].sum(axis=1, dtype=np.int64),
        masked=np.count_nonzero(positions, axis=1).astype(np.int64),
        label=float(columns["next_sentence_labels"].mean()) if pairs else None,
        mask_token=float(masked.sum()) / count,
        random_token=float((~masked & ~kept).sum()) / count,
        kept_token=float(kept.sum()) / count,
    )
