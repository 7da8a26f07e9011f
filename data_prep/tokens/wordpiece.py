r"""WordPiece ids, identical to those of Hugging Face ``tokenizers``, many times faster.

``tokenizers`` cleans, lower-cases, splits and looks up character by character, every time. But none
of its steps crosses a space or punctuation mark: the ids of a sentence are the ids of its words and
marks, one after the other. So:

```text
sentences -> bytes -> marks: ASCII, and dashes and quotes beyond -> ids
                   -> words: cache: bytes -> ids
                               |-- new, Latin, Greek, Cyrillic: WordPiece (compiled)
                               '-- new, other: tokenizers itself
```

Departure from transformers' tokenizer: text that contains the name of a special token (``[MASK]``)
is ordinary text, so that no document can put special ids into the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertds.data.wordpiece_pipeline import LONGEST_WORD, wordpiece_pipeline
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import DataError
from bertds.system.start_up import pattern_on_first_use
from data_prep.tokens.wordpiece_kernels import count_ids, fill, gather, scan
from data_prep.tokens.wordpiece_tables import (
    END,
    LETTER,
    OPAQUE,
    PUNCTUATION,
    SPACE,
    Bytes,
    Table,
    Words,
    new_cache,
    new_table,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_CHARACTERS = 1 << 20
_SMALLEST_CACHE = 1 << 12
# The tokenizer puts spaces around these anyway, so a cut before one changes nothing.
_SAFE_CUT = pattern_on_first_use(r"[!-/:-@\[-`{-~\u4e00-\u9fff\u3400-\u4dbf]")
_SAFE_ASCII_CUT = re.compile(r"[!-/:-@\[-`{-~]")
_PIECE_CHARACTERS = 1 << 16


class WordPieceEncoder:
    """Encodes sentences. Keeps a bounded cache (about 80 MB), so use one per process."""

    def __init__(
        self,
        tokens: Sequence[str],
        rules: WordPieceRules | bool,
        *,
        cache_entries: int = 1 << 19,
    ) -> None:
        """Build the encoder.

        Args:
            tokens: the vocabulary in the order of its ids.
            rules: the rules applied to text; a bool means BERT's own, uncased (True) or cased.
            cache_entries: size of the cache, in words; it is emptied when it is full.
        """
        vocabulary = {token: number for number, token in enumerate(tokens)}
        if "[UNK]" not in vocabulary:
            raise DataError("the vocabulary does not contain [UNK]")
        self.dtype = np.dtype(np.uint16 if len(tokens) <= 65_535 else np.uint32)
        self.unknown = unknown = vocabulary["[UNK]"]
        if isinstance(rules, bool):
            rules = WordPieceRules.of(rules)
        self.exact_tokenizer = wordpiece_pipeline(vocabulary, rules)
        self._bytes = _byte_tables(vocabulary, rules.lower_case, unknown, self.exact_tokenizer)
        # If ideographs are not divided, a cut between them would divide a word.
        self._safe_cut = _SAFE_CUT if rules.chinese_characters else _SAFE_ASCII_CUT
        # WordPiece looks up a word's beginning and its continuations in different tables.
        rests = {t[2:].encode(): n for t, n in vocabulary.items() if t.startswith("##")}
        firsts = {t.encode(): n for t, n in vocabulary.items() if not t.startswith("##")}
        self._words = Words(
            _vocabulary_table(firsts, self._bytes.same),
            _vocabulary_table(rests, self._bytes.same),
            max(map(len, [*firsts, *rests])),
            unknown,
        )
        self._entries = max(cache_entries, _SMALLEST_CACHE)
        self._cache = new_cache(self._entries)

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize sentences.

        Returns:
            ids: [T], the tokens of all sentences (uint16, or uint32 for large vocabularies).
            lengths: int64 [sentences], number of tokens per sentence; may be 0.
        """
        all_ids, all_lengths = [np.zeros(0, self.dtype)], [np.zeros(0, np.int64)]
        sentences = list(sentences)
        # A sentence must fit into the empty cache; a character has at most 4 bytes.
        limit = min(_BATCH_CHARACTERS, self._entries // 8)
        first = size = 0
        for number, length in enumerate(map(len, sentences)):
            if length >= limit:
                self._finish(sentences[first:number], all_ids, all_lengths)
                self._finish_giant(sentences[number], limit, all_ids, all_lengths)
                first, size = number + 1, 0
                continue
            size += length
            if size >= _BATCH_CHARACTERS:
                self._finish(sentences[first : number + 1], all_ids, all_lengths)
                first, size = number + 1, 0
        self._finish(sentences[first:], all_ids, all_lengths)
        return np.concatenate(all_ids), np.concatenate(all_lengths)

    def _finish(
        self, batch: list[str], all_ids: list[np.ndarray], all_lengths: list[np.ndarray]
    ) -> None:
        """Tokenize a batch, in several turns if the cache fills up."""
        if not batch:
            return
        joined = "\n".join(batch)
        if joined.count("\n") >= len(batch):  # a line feed inside a sentence is a space
            joined = "\n".join(sentence.replace("\n", " ") for sentence in batch)
        text = np.frombuffer(joined.encode("utf-8", "replace") + b"\n", np.uint8)
        remaining = len(batch)
        cache = self._cache
        values = np.empty(len(text), np.int32)
        opaque = np.empty((len(text), 3), np.int32)
        word_ends = np.zeros(remaining, np.int64)
        # Each turn scans until the cache is full, collects the ids, and empties the cache.
        while remaining:
            done, position, opaques = scan(
                text, self._bytes, LONGEST_WORD, cache, self._words, values, word_ends, opaque
            )
            self._resolve(text, opaque[:opaques])
            cache = self._cache
            ends = word_ends[:done]
            lengths = np.empty(done, np.int64)
            ids = np.empty(count_ids(values, ends, cache.id_sizes, lengths), self.dtype)
            count = int(ends[-1]) if done else 0
            gather(values, count, cache.id_starts, cache.id_sizes, cache.ids, ids)
            all_ids.append(ids)
            all_lengths.append(lengths)
            text = text[position:]
            remaining -= done
            if remaining:
                for array in (cache.short, cache.long.slots, cache.long.used, cache.used):
                    array.fill(0)

    def _resolve(self, text: np.ndarray, opaque: np.ndarray) -> None:
        """Let ``tokenizers`` find the ids of new words that the compiled loop does not know."""
        # All of a turn's words at once: a call of the library costs more than a word.
        if not len(opaque):
            return
        cache = self._cache
        raw = text.tobytes()
        words = [raw[begin:end].decode() for _, begin, end in opaque.tolist()]
        for entry, found in zip(opaque[:, 0].tolist(), self._encode_exactly(words), strict=True):
            at = int(cache.used[2])
            if at + len(found) > len(cache.ids):  # a compatibility ideograph may become several
                more = np.zeros(len(cache.ids), np.int32)
                cache = self._cache = cache._replace(ids=np.concatenate([cache.ids, more]))
            cache.ids[at : at + len(found)] = found
            cache.id_starts[entry], cache.id_sizes[entry] = at, len(found)
            cache.used[2] = at + len(found)

    def _encode_exactly(self, texts: list[str]) -> list[list[int]]:
        encodings = self.exact_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _finish_giant(
        self,
        sentence: str,
        limit: int,
        all_ids: list[np.ndarray],
        all_lengths: list[np.ndarray],
    ) -> None:
        """Tokenize a sentence that is larger than the cache in pieces."""
        total = 0
        for piece in _giant_pieces(sentence, limit, self._safe_cut):
            if len(piece) < limit:
                ids, _ = self.encode([piece])
            else:  # a word longer than the cache
                ids = np.array(self._encode_exactly([piece])[0], self.dtype)
            all_ids.append(ids)
            total += len(ids)
        all_lengths.append(np.array([total], np.int64))


def _byte_tables(
    vocabulary: dict[str, int], lower_case: bool, unknown: int, exact: Tokenizer
) -> Bytes:
    """Return the kind of each byte, its lower case, and the ids of punctuation."""
    kinds = np.full(256, OPAQUE, np.uint8)  # control characters and all beyond ASCII
    ids = np.full(256, unknown, np.int32)
    for byte in range(33, 127):
        kinds[byte] = LETTER if chr(byte).isalnum() else PUNCTUATION
        ids[byte] = vocabulary.get(chr(byte), unknown)
    for byte in b" \t\r":
        kinds[byte] = SPACE
    kinds[ord("\n")] = END
    same = np.arange(256, dtype=np.uint8)
    lower = same.copy()
    if lower_case:
        lower[ord("A") : ord("Z") + 1] += 32
    # Dashes and quotes (U+2000 to U+203F) are frequent enough in prose to be worth a table.
    mark_ids = np.full(256, -1, np.int32)
    for byte in range(0x80, 0xC0):
        mark = bytes([0xE2, 0x80, byte]).decode()
        pieces = exact.pre_tokenizer.pre_tokenize_str(exact.normalizer.normalize_str(f"a{mark}b"))
        found = exact.encode(mark, add_special_tokens=False).ids
        # Only marks that are separate words between letters divide words as ASCII marks do.
        if [piece for piece, _ in pieces] == ["a", mark, "b"] and len(found) == 1:
            mark_ids[byte] = found[0]
    forms = [_normal_form(chr(code), exact).encode() for code in range(0x80, 0x800)]
    pair_ends = np.cumsum(list(map(len, forms))).astype(np.int32)
    pair_text = np.frombuffer(b"".join(forms) or b" ", np.uint8)
    return Bytes(kinds, lower, same, ids, mark_ids, pair_ends, pair_text)


def _normal_form(character: str, exact: Tokenizer) -> str:
    """Return the normal form that ``tokenizers`` gives a character within a word.

    "" if it depends on its neighbours, if the character divides words, or if nothing remains.
    """
    normal = exact.normalizer.normalize_str
    form: str = normal(character)
    alone = (
        normal(f"a{character}b") == f"a{form}b"
        and normal(f"a{character}") == f"a{form}"
        and normal(f"{character}b") == f"{form}b"
    )
    whole = len(exact.pre_tokenizer.pre_tokenize_str(f"a{form}b")) == 1
    # At most 2 characters of 2 bytes: the room for ids in the cache is based on the text's bytes.
    return form if alone and whole and len(form) <= 2 else ""


def _vocabulary_table(tokens: dict[bytes, int], same: np.ndarray) -> Table:
    """Return a table of tokens and their ids."""
    encoded = {token: number for token, number in tokens.items() if token}
    text = np.frombuffer(b"".join(encoded) or b" ", np.uint8)
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    table = new_table(len(encoded) + 1, len(text))
    fill(table, text, ends, np.fromiter(encoded.values(), np.int32, len(encoded)), same)
    return table


def _giant_pieces(text: str, limit: int, safe_cut: re.Pattern[str]) -> Iterator[str]:
    """Cut a giant sentence where the tokenizer cuts it too: at spaces, marks and ideographs."""
    start = 0
    step = min(limit // 8, _PIECE_CHARACTERS)
    while len(text) - start > step:
        end = text.rfind(" ", start, start + step)
        # No space in this stretch: look beyond it for the next safe place.
        if end <= start:
            match = safe_cut.search(text, start + step)
            space = text.find(" ", start + step)
            ends = [e for e in (match.start() if match else -1, space) if e >= 0]
            if not ends:
                break
            end = min(ends)
        yield text[start:end]
        start = end
    yield text[start:]
