r"""WordPiece ids, bit-equal to Hugging Face ``tokenizers``, many times faster.

``tokenizers`` cleans, lower-cases, splits and looks up character by character, each time anew. But
all its steps stay between two spaces: the ids of a sentence are those of its space-separated chunks
in a row, and those of an ASCII chunk are those of its words and punctuation marks. So:

```text
sentences -> bytes -> chunks: ASCII -> words, marks -> cache: bytes -> ids
                              other -> as a whole   ->   |-- new, ASCII: WordPiece (compiled)
                                                         '-- new, other: tokenizers itself
```

Departure from transformers' tokenizer: text that spells a special token (``[MASK]``) is text here,
so that no document can put special ids into the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bertds.errors import DataError
from data_prep.wordpiece_kernels import (
    LETTER,
    OPAQUE,
    PUNCTUATION,
    SPACE,
    Table,
    count_ids,
    fill,
    gather,
    new_table,
    scan,
)

LONGEST_WORD = 100
"""Characters; a longer word is [UNK], as in every BERT tokenizer."""

_BATCH_BYTES = 1 << 20
_SMALLEST_CACHE = 1 << 12
# A cut before one of these is invisible to the tokenizer: it sets spaces around them anyway.
_SAFE_CUT = re.compile(r"[!-/:-@\[-`{-~\u4e00-\u9fff\u3400-\u4dbf]")
_PIECE_CHARACTERS = 1 << 16


def huggingface_tokenizer(vocabulary: dict[str, int], lower_case: bool) -> Any:
    """Return the ``tokenizers`` pipeline of BERT, without added special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class WordPieceEncoder:
    """Sentences to ids. Keeps a bounded cache (about 60 MB); one per process."""

    def __init__(
        self, tokens: Sequence[str], lower_case: bool, *, cache_entries: int = 1 << 19
    ) -> None:
        """Build the encoder.

        Args:
            tokens: the vocabulary in the order of its ids.
            lower_case: whether text is lower-cased and stripped of accents.
            cache_entries: the cache is emptied when it is full.
        """
        vocabulary = {token: number for number, token in enumerate(tokens)}
        if "[UNK]" not in vocabulary:
            raise DataError("the vocabulary misses [UNK]")
        self.dtype = np.dtype(np.uint16 if len(tokens) <= 65_535 else np.uint32)
        self._unknown = vocabulary["[UNK]"]
        self._exact = huggingface_tokenizer(vocabulary, lower_case)
        self._kinds, self._lower, self._same = _byte_tables(lower_case)
        # Tokens that are not ASCII cannot be found in ASCII words.
        rests = {t[2:]: n for t, n in vocabulary.items() if t.startswith("##") and t.isascii()}
        firsts = {t: n for t, n in vocabulary.items() if not t.startswith("##") and t.isascii()}
        self._firsts, self._first_ids = _vocabulary_table(firsts, self._same)
        self._rests, self._rest_ids = _vocabulary_table(rests, self._same)
        self._entries = max(cache_entries, _SMALLEST_CACHE)
        self._ids = np.zeros(8 * self._entries, np.int32)
        self._ids_used = np.zeros(1, np.int64)
        self._id_starts = np.zeros(self._entries, np.int64)
        self._id_sizes = np.zeros(self._entries, np.int32)
        self._clear()

    def _clear(self) -> None:
        self._cache = new_table(self._entries, 16 * self._entries)
        # Entry 0 stands for every word that is too long. No text is empty, so none finds it.
        self._cache.used[0] = 1
        self._ids[0] = self._unknown
        self._id_starts[0], self._id_sizes[0] = 0, 1
        self._ids_used[0] = 1

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise sentences.

        Returns:
            ids: [T], all sentences' tokens in a row (uint16, uint32 for large vocabularies).
            lengths: int64 [sentences], tokens of each sentence; may be 0.
        """
        all_ids, all_lengths = [np.zeros(0, self.dtype)], [np.zeros(0, np.int64)]
        batch: list[bytes] = []
        size = 0
        limit = min(_BATCH_BYTES, self._entries // 2)
        for sentence in sentences:
            data = sentence.encode("utf-8", "replace")
            if len(data) >= limit:
                self._finish(batch, all_ids, all_lengths)
                batch, size = [], 0
                self._finish_giant(sentence, limit // 4, all_ids, all_lengths)
                continue
            batch.append(data)
            size += len(data)
            if size >= _BATCH_BYTES:
                self._finish(batch, all_ids, all_lengths)
                batch, size = [], 0
        self._finish(batch, all_ids, all_lengths)
        return np.concatenate(all_ids), np.concatenate(all_lengths)

    def _finish(
        self, batch: list[bytes], all_ids: list[np.ndarray], all_lengths: list[np.ndarray]
    ) -> None:
        """Tokenise a batch, in as many turns as the cache must be emptied."""
        while batch:
            text = np.frombuffer(b" ".join(batch) + b" ", np.uint8)
            sizes = np.fromiter(map(len, batch), np.int64, len(batch))
            words = np.empty(len(text), np.int32)
            opaque = np.empty(len(text), np.int32)
            word_ends = np.zeros(len(batch), np.int64)
            done, opaques = scan(
                text, np.cumsum(sizes + 1) - 1, self._kinds, self._lower, self._same, LONGEST_WORD,
                self._cache, self._id_starts, self._id_sizes, self._ids, self._ids_used,
                self._firsts, self._first_ids, self._rests, self._rest_ids, self._unknown,
                words, word_ends, opaque,
            )  # fmt: skip
            self._resolve(opaque[:opaques].tolist())
            word_ends = word_ends[:done]
            lengths = np.empty(done, np.int64)
            ids = np.empty(count_ids(words, word_ends, self._id_sizes, lengths), self.dtype)
            count = int(word_ends[-1]) if done else 0
            gather(words, count, self._id_starts, self._id_sizes, self._ids, ids)
            all_ids.append(ids)
            all_lengths.append(lengths)
            batch = batch[done:]
            if batch:
                self._clear()

    def _resolve(self, entries: list[int]) -> None:
        """Let ``tokenizers`` find the ids of new chunks that are not plain ASCII."""
        if not entries:
            return
        cache = self._cache
        chunks = []
        for entry in entries:
            start = int(cache.starts[entry])
            chunks.append(bytes(cache.arena[start : start + int(cache.sizes[entry])]).decode())
        for entry, encoding in zip(entries, self._encode_exactly(chunks)):
            at = int(self._ids_used[0])
            if at + len(encoding) > len(self._ids):  # compatibility ideographs, one to many
                self._ids = np.concatenate([self._ids, np.zeros(len(self._ids), np.int32)])
            self._ids[at : at + len(encoding)] = encoding
            self._id_starts[entry], self._id_sizes[entry] = at, len(encoding)
            self._ids_used[0] = at + len(encoding)

    def _encode_exactly(self, texts: list[str]) -> list[list[int]]:
        encodings = self._exact.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _finish_giant(
        self,
        sentence: str,
        limit: int,
        all_ids: list[np.ndarray],
        all_lengths: list[np.ndarray],
    ) -> None:
        """Tokenise a sentence that is larger than the cache, piece by piece."""
        total = 0
        for piece in _giant_pieces(sentence, limit):
            if len(piece) < limit:
                ids, _ = self.encode([piece])
            else:  # a chunk that nothing divides
                ids = np.array(self._encode_exactly([piece])[0], self.dtype)
            all_ids.append(ids)
            total += len(ids)
        all_lengths.append(np.array([total], np.int64))


def _byte_tables(lower_case: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the kind of each byte, its lower case (or itself), and itself."""
    kinds = np.full(256, OPAQUE, np.uint8)  # control characters and all beyond ASCII
    for byte in range(33, 127):
        kinds[byte] = LETTER if chr(byte).isalnum() else PUNCTUATION
    for byte in b" \t\n\r":
        kinds[byte] = SPACE
    same = np.arange(256, dtype=np.uint8)
    lower = same.copy()
    if lower_case:
        lower[ord("A") : ord("Z") + 1] += 32
    return kinds, lower, same


def _vocabulary_table(tokens: dict[str, int], same: np.ndarray) -> tuple[Table, np.ndarray]:
    """Return a table of tokens and the id of each entry."""
    encoded = [token.encode() for token in tokens if token]
    text = np.frombuffer(b"".join(encoded) or b" ", np.uint8)
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    table = new_table(len(encoded) + 1, len(text))
    fill(table, text, ends, same)
    return table, np.array([n for token, n in tokens.items() if token] or [0], np.int32)


def _giant_pieces(text: str, limit: int) -> Iterator[str]:
    """Cut a giant sentence where the tokenizer cuts it anyway: at spaces, marks, ideographs."""
    start = 0
    step = min(limit // 8, _PIECE_CHARACTERS)
    while len(text) - start > step:
        end = text.rfind(" ", start, start + step)
        if end <= start:
            match = _SAFE_CUT.search(text, start + step)
            space = text.find(" ", start + step)
            ends = [e for e in (match.start() if match else -1, space) if e >= 0]
            if not ends:
                break
            end = min(ends)
        yield text[start:end]
        start = end
    yield text[start:]
