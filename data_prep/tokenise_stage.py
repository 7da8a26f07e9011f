"""Stage 1: units -> documents -> sentences -> tokens -> part files.

With ``--train-vocab`` the text is written first (``read_unit``), a vocabulary is trained on a
sample of it, and the text parts are tokenised (``tokenise_part``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.data.vocabulary import read_vocabulary
from bertds.errors import DataError
from data_prep.document import EMPTY, TOO_SHORT, Unit
from data_prep.markers import read_marker, write_marker
from data_prep.parts import PartDocument, open_part, write_part
from data_prep.sentences import sentence_splitter
from data_prep.sources import READERS, SOURCE_KINDS
from data_prep.wordpiece import WordPieceEncoder

_BATCH_CHARACTERS = 1 << 19
_TEXT = np.dtype(np.uint8)


Counts = dict[str, Counter[str]]
"""By source: documents read, and dropped by reason."""


class StageTask(NamedTuple):
    """One unit, and all that is needed to turn it into a part."""

    unit: Unit | None
    """None: tokenise the text part instead."""
    part: Path
    marker: Path
    seed: int
    language: str
    min_tokens: int
    vocab: Path | None
    """None: write text, there is no vocabulary yet."""
    lower_case: bool
    fingerprint: str = ""
    inputs: str = ""
    """What the result depends on beside settings, for the marker."""
    text_part: Path | None = None

    def earlier(self) -> dict[str, Any] | None:
        """Return what a valid marker of an earlier run says."""
        return read_marker(self.marker, self.part, self.inputs)

    @property
    def size(self) -> int:
        """Bytes of work, for the progress bar."""
        if self.unit is not None:
            return self.unit.size
        return self.text_part.stat().st_size if self.text_part else 0


@lru_cache(maxsize=2)
def encoder(vocab: Path, lower_case: bool, fingerprint: str) -> WordPieceEncoder:
    """Return this process's encoder for the vocabulary of this fingerprint."""
    return WordPieceEncoder(read_vocabulary(vocab), lower_case)


def content_key(sentences: Iterable[str], seed: int) -> tuple[int, int]:
    """Return the hash of a document's text, keyed by the seed.

    It orders all documents, decides the split and finds duplicates: so the result depends on
    nothing but contents and seed. 128 bits: equal keys mean equal texts.
    """
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(key=key, digest_size=16)
    digest.update("\n".join(sentences).encode("utf-8", "surrogatepass"))
    value = digest.digest()
    return int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big")


def run_stage(task: StageTask) -> dict[str, Any]:
    """Do one task; return what its marker records."""
    counts: Counts = {}
    assert task.unit is not None or task.text_part is not None
    if task.unit is None:
        documents = _text_part_documents(task)
    else:
        documents = _unit_documents(task.unit, task, counts)
    if task.vocab is None:
        parts = _as_text(documents)
        payload_type: np.dtype[Any] = _TEXT
    else:
        words = encoder(task.vocab, task.lower_case, task.fingerprint)
        parts = _as_tokens(documents, words, task.min_tokens, counts)
        payload_type = words.dtype
    kept = list(parts)
    write_part(task.part, kept, payload_type)
    result = {
        "part": task.part.name,
        "size": task.size,
        "documents": len(kept),
        "counts": {source: dict(sorted(own.items())) for source, own in sorted(counts.items())},
    }
    return write_marker(task.marker, task.part, result, task.inputs)


class _Sentences(NamedTuple):
    key: tuple[int, int]
    source: int
    sentences: list[str]


def _unit_documents(unit: Unit, task: StageTask, counts: Counts) -> Iterator[_Sentences]:
    split = sentence_splitter(task.language)
    source = SOURCE_KINDS.index(unit.source)
    own = counts.setdefault(unit.source, Counter())
    try:
        for document in READERS[unit.reader](unit):
            own["read"] += 1
            sentences = [] if document.dropped else split(document.text)
            if not sentences:
                own[document.dropped or EMPTY] += 1
                continue
            yield _Sentences(content_key(sentences, task.seed), source, sentences)
    except OSError as error:
        raise DataError(f"{unit.file}: cannot be read ({error.strerror or error})") from error


def _text_part_documents(task: StageTask) -> Iterator[_Sentences]:
    assert task.text_part is not None
    part = open_part(task.text_part)
    for number in range(part.documents):
        begin, end = part.payload_of(number)
        text = bytes(part.payload[begin:end])
        first, last = part.sentences_of(number)
        sentences = []
        at = 0
        for length in part.lengths[first:last].tolist():
            sentences.append(text[at : at + length].decode("utf-8", "surrogatepass"))
            at += length
        key = (int(part.key_high[number]), int(part.key_low[number]))
        yield _Sentences(key, int(part.sources[number]), sentences)


def _as_text(documents: Iterable[_Sentences]) -> Iterator[PartDocument]:
    for document in documents:
        encoded = [s.encode("utf-8", "surrogatepass") for s in document.sentences]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        payload = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        yield PartDocument(document.key, document.source, lengths, payload)


def _as_tokens(
    documents: Iterable[_Sentences], words: WordPieceEncoder, min_tokens: int, counts: Counts
) -> Iterator[PartDocument]:
    """Tokenise many documents at a time; drop empty sentences and documents that are too short."""
    for batch in _batches(documents):
        sentences = [sentence for document in batch for sentence in document.sentences]
        ids, lengths = words.encode(sentences)
        ends = np.cumsum(lengths)
        first = 0
        for document in batch:
            last = first + len(document.sentences)
            own = lengths[first:last]
            begin, end = int(ends[first] - own[0]), int(ends[last - 1])
            first = last
            if end - begin < min_tokens:
                reason = TOO_SHORT if end > begin else EMPTY
                counts.setdefault(SOURCE_KINDS[document.source], Counter())[reason] += 1
            else:
                kept = own[own > 0].astype(np.int32)
                yield PartDocument(document.key, document.source, kept, ids[begin:end])


def _batches(documents: Iterable[_Sentences]) -> Iterator[list[_Sentences]]:
    """Group documents; a large one is alone, and its sentences are tokenised together."""
    batch: list[_Sentences] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document.sentences))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
