"""Rows made during training from token shards, with new pairs and masks in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.manifest import Manifest, ShardInfo
from bertds.data.formats.token_shards import TokenShard, Verify, check_size, offsets_of
from bertds.data.samples.flat_rows import FlatRows, RowMaker
from bertds.data.samples.pairing import Pairs, count_shard, partner_number, scan_shard
from bertds.data.sources.base import Block, Source
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.errors import DataError

BLOCK_ROWS = 2_000_000
"""About 100 MB for a block and the next one: 25 bytes per sample, and 8 for the order."""
READ_AHEAD = 16
"""Shards announced to a store in advance when all are read once, one after the other."""

_TOKENS_AT_ONCE = 1 << 22


class TokenBlock(Block):
    """Samples of a few token shards. Tokens stay in the memory map until a row is made."""

    def __init__(
        self, maker: RowMaker, parts: Sequence[Pairs], shard_numbers: Sequence[int], epoch: int
    ) -> None:
        self._maker = maker
        self._parts = parts
        self._shard_numbers = shard_numbers
        self._epoch = epoch
        self._starts = offsets_of(np.array([part.size for part in parts]))
        self.rows = int(self._starts[-1])
        for part in parts:
            part.shard.read_ahead()

    def gather(self, numbers: np.ndarray, mask_rate: float | None = None) -> FlatRows:
        """Make the rows, with their masks."""
        where = (self._parts, self._shard_numbers)
        if len(self._parts) == 1:
            return self._maker.make(*where, None, numbers, self._epoch, mask_rate)
        part = np.searchsorted(self._starts, numbers, side="right") - 1
        samples = numbers - self._starts[part]
        return self._maker.make(*where, part, samples, self._epoch, mask_rate)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each row, special tokens included."""
        part = np.searchsorted(self._starts, numbers, side="right") - 1
        lengths = np.empty(len(numbers), np.int64)
        for index, pairs in enumerate(self._parts):
            here = part == index
            lengths[here] = self._maker.row_lengths(pairs, numbers[here] - self._starts[index])
        return lengths


class TokenSource(Source):
    """Token shards of a prepared folder, or one shard in memory."""

    def __init__(
        self,
        name: str,
        kind: str,
        tokenizer: TokenizerInfo,
        settings: RowSettings,
        seed: int,
        documents: Sequence[int],
        opened: dict[int, TokenShard],
        *,
        folder: Path | None = None,
        infos: Sequence[ShardInfo] = (),
        verify: Verify = "full",
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        self.tokenizer, self.settings, self.seed = tokenizer, settings, seed
        self.shards = len(documents)
        self.block_rows = BLOCK_ROWS
        self.has_pairs = settings.pairs != "none"
        self.sequence_length = settings.sequence_length
        self._documents = documents
        self._opened = opened
        self._folder, self._infos, self._verify = folder, infos, verify
        self._facts = facts or {}
        if settings.pairs == "nsp" and sum(documents) < 2:
            partner_number(seed, 0, 0, documents)  # its error explains why 1 document is too few

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        settings: RowSettings,
        seed: int,
        *,
        split: str,
        verify: Verify,
        vocab: str = "",
        name: str = "",
    ) -> Self:
        """Open a folder that preparation wrote; every shard must be there in its full size.

        Args:
            folder: contains the manifest and the tokenizer.
            settings: how rows are made.
            seed: decides pairs and masks.
            split: the name of a split in the manifest.
            verify: what is compared when a shard is opened.
            vocab: the vocabulary that the data must have been prepared with; "" = any.
            name: the name in messages; "" = the folder.

        Raises:
            DataError: see :meth:`Manifest.load` and :meth:`TokenShard.open`; or the shards were
                prepared with a vocabulary other than ``vocab``.
        """
        manifest = Manifest.load(folder)
        chosen = manifest.split(folder, split)
        # Equal fingerprints mean equal ids: the file itself may be somewhere else.
        if vocab:
            given = load_tokenizer_info(vocab, *manifest.tokenizer.rules)
            if given.fingerprint != manifest.tokenizer.fingerprint:
                raise DataError(
                    f"data.vocab={vocab} ({given.vocab_size} tokens) is not the vocabulary that "
                    f"{folder} was prepared with ({manifest.tokenizer.vocab_size} tokens); leave "
                    f"data.vocab empty, or prepare the data with it"
                )
        # Masking and export need the tokenizer's own file.
        file = "vocab.txt" if manifest.tokenizer.is_wordpiece else "tokenizer.json"
        if file not in manifest.tokenizer.files:
            raise DataError(f"{name or folder}/tokenizer/{file}: missing")
        # Identifies the text in checkpoints, wherever the folder is.
        checksums = " ".join(info.sha256 for info in chosen.shards)
        source = cls(
            name or str(folder),
            "token shards",
            manifest.tokenizer,
            settings,
            seed,
            [info.documents for info in chosen.shards],
            {},
            folder=folder,
            infos=chosen.shards,
            verify=verify,
            facts={
                "split": split,
                "documents": chosen.documents,
                "sentences": chosen.sentences,
                "tokens": chosen.tokens,
                "checksum": hashlib.sha256(checksums.encode()).hexdigest()[:16],
            },
        )
        source._check_files()
        return source

    def _check_files(self) -> None:
        """Check that every shard is there in its full size."""
        assert self._folder is not None
        for info in self._infos:
            check_size(self._folder / info.file, info)

    def token_counts(self) -> np.ndarray:
        """Return how often each token id occurs in this split, int64 [vocab_size]."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for shard in self._shards_in_turn():
            ids = shard.token_ids
            # In parts: bincount converts ids to int64, 4 times their size.
            for start in range(0, len(ids), _TOKENS_AT_ONCE):
                part = np.bincount(ids[start : start + _TOKENS_AT_ONCE], minlength=len(counts))
                if len(part) > len(counts):
                    raise DataError(f"{shard.name}: an id is not in the vocabulary")
                counts += part
        return counts

    def word_count(self) -> int:
        """Return the number of words of this split, from the word-start bits of its shards."""
        shards = self._shards_in_turn()
        return sum(int(np.bitwise_count(shard.word_starts).sum()) for shard in shards)

    def _shards_in_turn(self) -> Iterator[TokenShard]:
        for number in range(self.shards):
            self.read_ahead(range(number, min(number + READ_AHEAD, self.shards)))
            yield self.shard(number)

    def held_out(self) -> TokenSource | None:
        """Return the validation split of the prepared folder, or None if it has no document."""
        if self._folder is None:
            return None
        there = Manifest.load(self._folder).splits.get("validation")
        return self._open_held_out() if there is not None and there.documents else None

    def _open_held_out(self) -> TokenSource:
        assert self._folder is not None
        return TokenSource.from_folder(
            self._folder, self.settings, self.seed, split="validation", verify=self._verify
        )

    def shard(self, number: int) -> TokenShard:
        """Return an open shard; its checksum is verified the first time."""
        with self._lock:
            if number not in self._opened:
                info = self._infos[number]
                assert self._folder is not None
                self._opened[number] = TokenShard.open(
                    self._folder / info.file,
                    info,
                    self._verify,
                    self.tokenizer.fingerprint,
                    self.tokenizer.vocab_size,
                )
            return self._opened[number]

    def count_rows(self, epoch: int, shard: int) -> int:
        """Return the number of samples of the shard in this epoch."""
        return count_shard(*self._scan_place(epoch, shard), **self._scan_key(epoch, shard))

    def open_block(self, epoch: int, shards: Sequence[int]) -> TokenBlock:
        """Divide the documents of some shards into samples."""
        parts = [
            scan_shard(*self._scan_place(epoch, shard), **self._scan_key(epoch, shard))
            for shard in shards
        ]
        maker = RowMaker(self.settings, self.tokenizer, self.seed)
        return TokenBlock(maker, parts, list(shards), epoch)

    def describe(self) -> dict[str, Any]:
        """Return plain facts for the log and the run's record."""
        return {
            "kind": self.kind,
            "path": self.name,
            "shards": self.shards,
            **self._facts,
            "sequence_length": self.sequence_length,
            "pairs": self.settings.pairs,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }

    def _scan_place(self, epoch: int, shard: int) -> tuple[TokenShard, TokenShard]:
        return self.shard(shard), self.shard(self._partner(epoch, shard))

    def _partner(self, epoch: int, shard: int) -> int:
        """Return the shard of random segments; the shard itself unless pairs are drawn (nsp)."""
        if self.settings.pairs != "nsp":
            return shard
        return partner_number(self.seed, epoch, shard, self._documents)

    def _scan_key(self, epoch: int, shard: int) -> dict[str, Any]:
        return {
            "shard_number": shard,
            "epoch": epoch,
            "seed": self.seed,
            "settings": self.settings,
        }
