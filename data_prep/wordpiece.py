r"""WordPiece ids, bit-equal to Hugging Face ``tokenizers``, several times faster.

``tokenizers`` cleans, lower-cases, splits and looks up character by character, each time anew. But
all its steps stay between two spaces: the ids of a sentence are those of its space-separated chunks
in a row. So each chunk is asked for once, and found in a dictionary afterwards:

```text
sentences -> chunks -> number of each chunk (dict) -> ids by one numpy gather
                            \-> unknown: ASCII -> words and punctuation -> ids of each (dict)
                                          other, new words -> tokenizers itself
```

Departure from transformers' tokenizer: text that spells a special token (``[MASK]``) is text here,
so that no document can put special ids into the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bertds.errors import DataError

LONGEST_CACHED_CHUNK = 64
_CHUNKS_AT_ONCE = 1 << 17
LONGEST_WORD = 100
"""Characters; a longer word is [UNK], as in every BERT tokenizer."""

# tokenizers deletes these; Python's split() would take them for spaces.
_DELETED_SPACES = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_ASCII_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# A cut before one of these is invisible to the tokenizer: it sets spaces around them anyway.
_PIECE_CHARACTERS = 1 << 16
_SAFE_CUT = re.compile(r"[!-/:-@\[-`{-~\u4e00-\u9fff\u3400-\u4dbf]")


def huggingface_tokenizer(vocabulary: dict[str, int], lower_case: bool) -> Any:
    """Return the ``tokenizers`` pipeline of BERT, without added special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class _ChunkTable(dict[str, int]):
    """Chunk -> its row in the id table; a chunk not yet there gets the next row, and is listed."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, chunk: str) -> int:
        row = self[chunk] = len(self)
        self.new.append(chunk)
        return row


class WordPieceEncoder:
    """Sentences to ids. Keeps a bounded cache; one per process."""

    def __init__(
        self, tokens: Sequence[str], lower_case: bool, *, cache_chunks: int = 1_000_000
    ) -> None:
        """Build the encoder.

        Args:
            tokens: the vocabulary in the order of its ids.
            lower_case: whether text is lower-cased and stripped of accents.
            cache_chunks: the cache is emptied when it holds so many chunks (about 200 B each).
        """
        self.vocabulary = {token: number for number, token in enumerate(tokens)}
        if "[UNK]" not in self.vocabulary:
            raise DataError("the vocabulary misses [UNK]")
        self.lower_case = lower_case
        self.cache_chunks = cache_chunks
        self.dtype = np.dtype(np.uint16 if len(tokens) <= 65_535 else np.uint32)
        self._unknown = [self.vocabulary["[UNK]"]]
        self._exact = huggingface_tokenizer(self.vocabulary, lower_case)
        self._words: dict[str, list[int]] = {}
        self._clear()

    def _clear(self) -> None:
        self._rows = _ChunkTable()
        self._ids = np.zeros(1 << 16, dtype=self.dtype)
        self._starts = np.zeros(1 << 14, dtype=np.int64)
        self._lengths = np.zeros(1 << 14, dtype=np.int64)
        self._used = 0

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise sentences.

        Returns:
            ids: [T], all sentences' tokens in a row (uint16, uint32 for large vocabularies).
            lengths: int64 [sentences], tokens of each sentence; may be 0.
        """
        all_ids: list[np.ndarray] = []
        all_lengths: list[np.ndarray] = []
        chunks: list[str] = []
        ends: list[int] = []
        lower = self.lower_case
        for sentence in sentences:
            if sentence.isascii():
                # Lower-casing first finds more in the cache; beyond ASCII it is not always equal.
                if lower:
                    sentence = sentence.lower()
                if not sentence.isprintable():
                    sentence = _DELETED_SPACES.sub("", sentence)
            else:
                sentence = _DELETED_SPACES.sub("", sentence)
            chunks += sentence.split()
            ends.append(len(chunks))
            if len(chunks) >= _CHUNKS_AT_ONCE:
                ids, lengths = self._encode_split(chunks, ends)
                all_ids.append(ids)
                all_lengths.append(lengths)
                chunks, ends = [], []
        ids, lengths = self._encode_split(chunks, ends)
        if not all_ids:
            return ids, lengths
        return np.concatenate([*all_ids, ids]), np.concatenate([*all_lengths, lengths])

    def _encode_split(self, chunks: list[str], ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and lengths of sentences whose chunks end at ``ends``."""
        rows = self._find(chunks)
        lengths = self._lengths[rows]
        # Position of every token in the id table: its chunk's start plus its place in the chunk.
        ends_of_chunks = np.cumsum(lengths)
        total = int(ends_of_chunks[-1]) if len(rows) else 0
        shift = self._starts[rows] - (ends_of_chunks - lengths)
        ids = self._ids[np.repeat(shift, lengths) + np.arange(total)]
        ends_of_sentences = np.concatenate([np.zeros(1, np.int64), ends_of_chunks])[ends]
        return ids, np.diff(ends_of_sentences, prepend=0)

    def _find(self, chunks: list[str]) -> np.ndarray:
        """Return the row of every chunk in the id table, int64 [chunks]."""
        if len(self._rows) > self.cache_chunks:
            self._clear()
        table = self._rows
        rows = np.fromiter(map(table.__getitem__, chunks), np.int64, len(chunks))
        if table.new:
            self._add(table.new, first_row=len(table) - len(table.new))
            if any(len(chunk) > LONGEST_CACHED_CHUNK for chunk in table.new):
                # Rows go on being counted by len(table): a name nobody asks for stands in.
                for row, chunk in enumerate(table.new, len(table) - len(table.new)):
                    if len(chunk) > LONGEST_CACHED_CHUNK:
                        del table[chunk]
                        table[f" {row}"] = row
            table.new = []
        return rows

    def _add(self, chunks: list[str], first_row: int) -> None:
        """Append the ids of new chunks to the table."""
        ids = self._encode_chunks(chunks)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter((i for one in ids for i in one), self.dtype, int(lengths.sum()))
        end_row, used = first_row + len(chunks), self._used + len(flat)
        if end_row > len(self._starts):
            grow = max(end_row, 2 * len(self._starts)) - len(self._starts)
            self._starts = np.concatenate([self._starts, np.zeros(grow, np.int64)])
            self._lengths = np.concatenate([self._lengths, np.zeros(grow, np.int64)])
        if used > len(self._ids):
            grow = max(used, 2 * len(self._ids)) - len(self._ids)
            self._ids = np.concatenate([self._ids, np.zeros(grow, self.dtype)])
        self._starts[first_row:end_row] = self._used + np.cumsum(lengths) - lengths
        self._lengths[first_row:end_row] = lengths
        self._ids[self._used : used] = flat
        self._used = used

    def _encode_chunks(self, chunks: list[str]) -> list[list[int]]:
        results: list[list[int]] = []
        exact: list[int] = []
        for number, chunk in enumerate(chunks):
            if chunk.isascii() and chunk.isprintable():
                results.append(self._ascii_chunk(chunk))
            else:
                exact.append(number)
                results.append([])
        if exact:
            pieces: list[str] = []
            owners: list[int] = []
            for number in exact:
                for piece in _pieces(chunks[number]):
                    pieces.append(piece)
                    owners.append(number)
            encodings = self._exact.encode_batch_fast(pieces, add_special_tokens=False)
            for number, encoding in zip(owners, encodings):
                results[number] = results[number] + encoding.ids
        return results

    def _ascii_chunk(self, chunk: str) -> list[int]:
        if self.lower_case:
            chunk = chunk.lower()
        if chunk in self.vocabulary and chunk.isalnum():
            return [self.vocabulary[chunk]]
        ids: list[int] = []
        words = self._words
        for word in _ASCII_WORDS.findall(chunk):
            found = words.get(word)
            if found is None:
                found = self._word(word)
                if len(word) <= LONGEST_CACHED_CHUNK:
                    if len(words) > self.cache_chunks:
                        words.clear()
                    words[word] = found
            ids += found
        return ids

    def _word(self, word: str) -> list[int]:
        """Greedy longest match, left to right (WordPiece)."""
        if len(word) > LONGEST_WORD:
            return self._unknown
        vocabulary = self.vocabulary
        ids = []
        start, end = 0, len(word)
        while start < end:
            stop = end
            while stop > start:
                piece = word[start:stop] if start == 0 else "##" + word[start:stop]
                number = vocabulary.get(piece)
                if number is not None:
                    ids.append(number)
                    break
                stop -= 1
            else:
                return self._unknown
            start = stop
        return ids


def _pieces(chunk: str) -> Iterable[str]:
    """Cut a giant chunk where the tokenizer cuts it anyway: it needs some 50 bytes a character."""
    start = 0
    while len(chunk) - start > _PIECE_CHARACTERS:
        match = _SAFE_CUT.search(chunk, start + _PIECE_CHARACTERS)
        if match is None:
            break
        yield chunk[start : match.start()]
        start = match.start()
    yield chunk[start:]
