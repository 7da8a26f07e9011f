"""Turns samples into rows: truncation, special tokens and masks in one compiled pass.

```text
Pairs (token ranges) --gather--> FlatRows (real tokens only, one row after the other)
                                     |--> micro batches (loader)
                                     '--> NVIDIA's padded [N, S] layout (build_instances)
```

All random choices of a row (which end loses tokens, which positions are masked, what replaces them)
come from one stream with the key (seed, epoch, shard number, number in the shard).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.padded_columns import Columns, empty_columns, place_rows
from bertds.data.formats.token_shards import TokenShard, offsets_of
from bertds.data.rng import ROWS, SAMPLE_ORDER, derive_key, permutation
from bertds.data.samples.kernels import assemble
from bertds.data.samples.masking import ngram_thresholds, predictions_by_length
from bertds.data.samples.pairing import Pairs, partner_number, scan_shard
from bertds.data.vocabulary import TokenizerInfo
from bertds.errors import DataError


@dataclass(slots=True, eq=False)
class FlatRows:
    """Rows without padding: row r is the range ``row_offsets[r] : row_offsets[r + 1]``."""

    input_ids: np.ndarray
    """int64 [T], already masked."""
    segment_ids: np.ndarray
    """int64 [T]."""
    position_ids: np.ndarray
    """int64 [T], from 0 in each row."""
    row_offsets: np.ndarray
    """int64 [N + 1]."""
    masked_positions: np.ndarray
    """int64 [M], indices into the flat arrays, ascending."""
    masked_ids: np.ndarray
    """int64 [M], the original ids."""
    mask_offsets: np.ndarray
    """int64 [N + 1]: row r has the masked positions ``mask_offsets[r] : mask_offsets[r + 1]``."""
    labels: np.ndarray | None
    """int64 [N], 1 = random or swapped; None without pairs."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.row_offsets) - 1

    def last(self, count: int) -> FlatRows:
        """Return the last ``count`` rows; arrays are views where possible."""
        first = self.rows - count
        token, mask = int(self.row_offsets[first]), int(self.mask_offsets[first])
        return FlatRows(
            self.input_ids[token:],
            self.segment_ids[token:],
            self.position_ids[token:],
            self.row_offsets[first:] - token,
            self.masked_positions[mask:] - token,
            self.masked_ids[mask:],
            self.mask_offsets[first:] - mask,
            None if self.labels is None else self.labels[first:],
        )


def join_rows(pieces: Sequence[FlatRows]) -> FlatRows:
    """Concatenate rows."""
    if len(pieces) == 1:
        return pieces[0]
    # Offsets and positions are indices into the flat arrays, so they shift with each piece.
    starts = offsets_of(np.array([len(piece.input_ids) for piece in pieces]))
    shifted = [p.masked_positions + s for p, s in zip(pieces, starts[:-1], strict=True)]
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    return FlatRows(
        np.concatenate([piece.input_ids for piece in pieces]),
        np.concatenate([piece.segment_ids for piece in pieces]),
        np.concatenate([piece.position_ids for piece in pieces]),
        offsets_of(np.concatenate([np.diff(piece.row_offsets) for piece in pieces])),
        np.concatenate(shifted),
        np.concatenate([piece.masked_ids for piece in pieces]),
        offsets_of(np.concatenate([np.diff(piece.mask_offsets) for piece in pieces])),
        np.concatenate(labels) if labels else None,
    )


class RowMaker:
    """Turns samples into rows for one tokenizer and one set of settings.

    Raises:
        DataError: whole-word masking with a WordPiece vocabulary that has no ``##`` pieces.
    """

    def __init__(self, settings: RowSettings, tokenizer: TokenizerInfo, seed: int) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.seed = seed
        self._predictions = self._predictions_at(settings.masked_lm_prob)
        self._whole_words = settings.whole_word_masking or settings.ngram > 1
        self._ngram = ngram_thresholds(settings.ngram)
        # A placeholder: the kernel reads it only for whole words of a WordPiece vocabulary.
        self._continues = np.zeros(1, np.bool_)
        if self._whole_words and tokenizer.is_wordpiece:
            self._continues = tokenizer.continuation_pieces()
            if not self._continues.any():
                raise DataError(
                    "whole-word masking requires a WordPiece vocabulary, but this one has no ## "
                    "pieces"
                )

    def _predictions_at(self, mask_rate: float) -> np.ndarray:
        settings = self.settings
        return predictions_by_length(
            settings.sequence_length, settings.special_tokens, mask_rate, settings.max_predictions
        )

    def row_lengths(self, pairs: Pairs, samples: np.ndarray) -> np.ndarray:
        """Return the number of tokens of the rows of some samples, int64 [n]."""
        tokens = pairs.a_length[samples].astype(np.int64) + pairs.b_length[samples]
        settings = self.settings
        return np.minimum(tokens, settings.max_tokens) + settings.special_tokens

    def _word_starts(self, shard: TokenShard) -> np.ndarray:
        """Return the bits of the tokens that begin words; empty for WordPiece."""
        if self._whole_words and not self.tokenizer.is_wordpiece and not len(shard.word_starts):
            raise DataError(
                f"{shard.name}: word_starts is missing, which whole-word masking requires"
            )
        return shard.word_starts

    def make(
        self,
        parts: Sequence[Pairs],
        shard_numbers: Sequence[int],
        part_of_row: np.ndarray | None,
        sample_of_row: np.ndarray,
        epoch: int,
        mask_rate: float | None = None,
    ) -> FlatRows:
        """Make rows in the given order.

        Args:
            parts: samples of some shards.
            shard_numbers: the number of each part's shard.
            part_of_row: int [N], the part that each row comes from; None if there is one part.
            sample_of_row: int64 [N], the sample of that part.
            epoch: epoch, or pass of duplicated instance files.
            mask_rate: fraction of masked tokens; None = the settings' masked_lm_prob.

        Raises:
            DataError: a shard contains an id outside the vocabulary.
        """
        settings, count = self.settings, len(sample_of_row)
        # The length and label of every row, part by part.
        groups = _group(part_of_row, sample_of_row, len(parts))
        lengths = np.empty(count, np.int64)
        labels = np.empty(count, np.int64)
        for part, rows, samples in groups:
            pairs = parts[part]
            lengths[rows] = self.row_lengths(pairs, samples)
            labels[rows] = pairs.labels[samples]
        # Where each row and its masked positions begin; some reserved positions may stay unused.
        row_offsets = offsets_of(lengths)
        predictions = self._predictions
        if mask_rate is not None:
            predictions = self._predictions_at(mask_rate)
        capacity = offsets_of(predictions[lengths])
        # The flat arrays, filled in place below.
        total, masked = int(row_offsets[-1]), int(capacity[-1])
        flat = FlatRows(
            np.empty(total, np.int64),
            np.empty(total, np.int64),
            np.empty(total, np.int64),
            row_offsets,
            np.empty(masked, np.int64),
            np.empty(masked, np.int64),
            capacity,
            None if settings.pairs == "none" else labels,
        )
        # Pairs, truncation and masks: one compiled pass per part.
        masked_counts = np.empty(count, np.int64)
        special = self.tokenizer.special_ids
        for part, rows, samples in groups:
            pairs = parts[part]
            bad_row = assemble(
                pairs.shard.token_ids,
                pairs.other.token_ids,
                self._word_starts(pairs.shard),
                self._word_starts(pairs.other),
                pairs.a_begin,
                pairs.a_length,
                pairs.b_begin,
                pairs.b_length,
                pairs.labels,
                np.uint64(derive_key(self.seed, ROWS, epoch, shard_numbers[part])),
                rows,
                samples,
                row_offsets,
                capacity,
                flat.input_ids,
                flat.segment_ids,
                flat.position_ids,
                flat.masked_positions,
                flat.masked_ids,
                masked_counts,
                settings.max_tokens,
                special["cls"],
                special["sep"],
                special["mask"],
                self.tokenizer.vocab_size,
                self._whole_words,
                self._continues,
                self._ngram,
            )
            if bad_row >= 0:
                raise DataError(
                    f"{pairs.shard.name}: damaged: a token id exceeds the vocabulary size "
                    f"{self.tokenizer.vocab_size}"
                )
        # Remove the reserved positions that were not used.
        _close_gaps(flat, masked_counts)
        return flat


def _group(
    part_of_row: np.ndarray | None, sample_of_row: np.ndarray, parts: int
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return (part, its rows, their samples) for each part that has rows."""
    # Sort once rather than compare with each part: a block may have many parts.
    if part_of_row is None or parts == 1:
        return [(0, np.arange(len(sample_of_row)), sample_of_row)]
    order = np.argsort(part_of_row, kind="stable")
    ends = np.searchsorted(part_of_row[order], np.arange(parts + 1))
    groups = []
    for part in range(parts):
        rows = order[ends[part] : ends[part + 1]]
        if len(rows):
            groups.append((part, rows, sample_of_row[rows]))
    return groups


def _close_gaps(flat: FlatRows, counts: np.ndarray) -> None:
    """Remove the unused positions that whole words leave, so that masked positions are dense."""
    masked = int(flat.mask_offsets[-1])
    wanted = np.diff(flat.mask_offsets)
    if int(counts.sum()) == masked:
        return
    # A slot's number within its row; the first counts[row] slots of a row are used.
    slot = np.arange(masked) - np.repeat(flat.mask_offsets[:-1], wanted)
    used = slot < np.repeat(counts, wanted)
    flat.masked_positions = flat.masked_positions[used]
    flat.masked_ids = flat.masked_ids[used]
    flat.mask_offsets = offsets_of(counts)


def padded_layout(
    flat: FlatRows, sequence_length: int, max_predictions: int, pad: int
) -> dict[str, np.ndarray]:
    """Return rows in NVIDIA's layout (``formats/nvidia_hdf5``), dtypes and padding included."""
    columns = empty_columns(
        flat.rows, sequence_length, max_predictions, labels=flat.labels is not None
    )
    place_flat_rows(flat, columns, np.arange(flat.rows), pad)
    return columns


def place_flat_rows(flat: FlatRows, columns: Columns, places: np.ndarray, pad: int) -> None:
    """Write row r to row ``places[r]`` of columns in NVIDIA's layout."""
    place_rows(
        places,
        pad,
        flat.row_offsets,
        flat.input_ids,
        flat.segment_ids,
        flat.mask_offsets,
        flat.masked_positions,
        flat.masked_ids,
        columns["input_ids"],
        columns["input_mask"],
        columns["segment_ids"],
        columns["masked_lm_positions"],
        columns["masked_lm_ids"],
    )
    if flat.labels is not None:
        columns["next_sentence_labels"][places] = flat.labels


def build_instances(
    shards: Sequence[TokenShard],
    pass_number: int,
    settings: RowSettings,
    seed: int,
    *,
    tokenizer: TokenizerInfo,
    shard_numbers: Sequence[int] | None = None,
    chunk_rows: int = 8_192,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of one pass over shards in NVIDIA's layout, in chunks.

    The rows are those that the loader would train on in epoch ``pass_number`` with this seed.
    Within a shard they are in random order. Memory is needed for one shard's samples (25 bytes
    each) and one chunk.

    Args:
        shards: all shards of the corpus, open (they are only mapped).
        pass_number: 0 ... dupe_factor - 1.
        settings: row settings.
        seed: any int; each pass and shard gets its own stream from it.
        tokenizer: of the shards.
        shard_numbers: the shards to process; None = all, in order.
        chunk_rows: maximum number of rows per chunk.

    Yields:
        Row arrays as :func:`bertds.data.formats.nvidia_hdf5.write_instance_file` expects them.

    Raises:
        DataError: pairs are needed and the corpus is a single document, or a shard is damaged.
    """
    for flat in flat_instances(
        shards, pass_number, settings, seed, tokenizer, shard_numbers, chunk_rows
    ):
        yield padded_layout(
            flat, settings.sequence_length, settings.max_predictions, tokenizer.special_ids["pad"]
        )


def flat_instances(
    shards: Sequence[TokenShard],
    pass_number: int,
    settings: RowSettings,
    seed: int,
    tokenizer: TokenizerInfo,
    shard_numbers: Sequence[int] | None = None,
    chunk_rows: int = 1_024,
) -> Iterator[FlatRows]:
    """Yield the rows of :func:`build_instances` without padding."""
    maker = RowMaker(settings, tokenizer, seed)
    documents = [shard.documents for shard in shards]
    for number in range(len(shards)) if shard_numbers is None else shard_numbers:
        other = number
        if settings.pairs == "nsp":
            other = partner_number(seed, pass_number, number, documents)
        pairs = scan_shard(
            shards[number],
            shards[other],
            shard_number=number,
            epoch=pass_number,
            seed=seed,
            settings=settings,
        )
        # Shuffled within the shard; training shuffles whole blocks of shards.
        order = permutation(derive_key(seed, SAMPLE_ORDER, pass_number, number), pairs.size)
        for start in range(0, pairs.size, chunk_rows):
            samples = order[start : start + chunk_rows]
            yield maker.make([pairs], [number], None, samples, pass_number)
