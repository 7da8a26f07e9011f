"""Stage 1: units -> documents -> sentences -> tokens -> part files.

With ``--train-vocab`` the text is written first, a vocabulary is trained on a sample of it, and the
text parts are then tokenized.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertds.data.formats.token_shards import offsets_of
from bertds.data.tokenizer_json import WORD_START, JsonTokenizer
from bertds.data.vocabulary import load_tokenizer_info
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.system.secrets import masked
from bertds.system.start_up import loading
from data_prep.document import EMPTY, LEFT_OUT, TOO_SHORT, Unit
from data_prep.selection.drop_log import DropLog, note_of
from data_prep.selection.filters import document_filter
from data_prep.selection.mixing import entries, repeat_key
from data_prep.settings import PrepSettings
from data_prep.sources import READERS, as_unicode
from data_prep.sources.reading import unreadable
from data_prep.stages.markers import read_marker, write_marker
from data_prep.stages.part_files import PartDocument, open_part, write_part
from data_prep.stages.unit_groups import changed, unit_name
from data_prep.tokens.sentences import sentence_splitter
from data_prep.tokens.wordpiece import WordPieceEncoder

_BATCH_CHARACTERS = 1 << 19
_TEXT = np.dtype(np.uint8)


class StageTask(NamedTuple):
    """One unit, and everything needed to turn it into a part."""

    unit: Unit | None
    """None = tokenize the text part instead."""
    part: Path
    marker: Path
    settings: PrepSettings
    sources: tuple[str, ...]
    """Names of all sources, in their order."""
    vocab: Path | None
    """None = write text, because there is no vocabulary yet."""
    fingerprint: str = ""
    inputs: str = ""
    """What the result depends on besides the settings, for the marker."""
    text_part: Path | None = None
    test_ngrams: Path | None = None
    """The table of ``--decontaminate``."""

    def earlier(self) -> dict[str, Any] | None:
        """Return the result in a valid marker of an earlier run, or None."""
        return read_marker(self.marker, self.part, self.inputs)

    @property
    def size(self) -> int:
        """Bytes of input, for the progress bar."""
        if self.unit is not None:
            return self.unit.size
        return self.text_part.stat().st_size if self.text_part else 0


class JsonEncoder:
    """Encodes sentences with a tokenizer that is not BERT's WordPiece.

    The ids contain WORD_START bits, which the shard stores separately.
    """

    dtype = np.dtype(np.uint32)

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self.tokenizer = tokenizer
        self.unknown = tokenizer.special_ids["unk"]
        self.encode = tokenizer.encode
        self.in_running_text = tokenizer.in_running_text


Encoder = WordPieceEncoder | JsonEncoder


@lru_cache(maxsize=2)
def encoder(vocab: Path, rules: WordPieceRules, wordpiece: bool, fingerprint: str) -> Encoder:
    """Return this process's encoder for the vocabulary with this fingerprint."""
    if not wordpiece:
        return JsonEncoder(JsonTokenizer(vocab))
    with loading():
        return WordPieceEncoder(load_tokenizer_info(vocab, *rules).vocabulary(), rules)


def content_key(sentences: Iterable[str], seed: int) -> tuple[int, int]:
    """Return the hash of a document's text, keyed by the seed.

    It orders all documents, decides the split and finds duplicates. So the result depends only on
    contents and seed. 128 bits: equal keys mean equal texts.
    """
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(key=key, digest_size=16)
    digest.update("\n".join(sentences).encode("utf-8", "surrogatepass"))
    value = digest.digest()
    return int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big")


def run_stage(task: StageTask) -> dict[str, Any]:
    """Run one task, and return the result in its marker."""
    counts: Counter[str] = Counter()
    log = DropLog(task.sources, task.settings.keep_dropped)
    assert task.unit is not None or task.text_part is not None
    if task.unit is None:
        documents = _text_part_documents(task)
    else:
        documents = _unit_documents(task.unit, task, log)
    # Without a vocabulary the part holds text, to train one on.
    if task.vocab is None:
        parts = _as_text(documents)
        payload_type: np.dtype[Any] = _TEXT
    else:
        settings = task.settings
        words = encoder(task.vocab, settings.rules, settings.is_wordpiece, task.fingerprint)
        parts = _as_tokens(documents, words, task, log, counts)
        payload_type = words.dtype
    # Documents are held in memory until they are sorted; a unit is 1 to 32 MiB.
    kept = list(parts)
    # The part is named after the state of the file, so it must still be the same.
    if task.unit is not None and unit_name(task.unit) != task.part.stem:
        raise changed(task.unit.file)
    # Written before the marker, which vouches for both files.
    log.save(task.part.with_suffix(".dropped"))
    write_part(task.part, kept, payload_type)
    unit = task.unit
    result = {
        "part": task.part.name,
        "size": task.size,
        "documents": len(kept),
        "counts": log.counts_json(),
        "tokens": counts["tokens"],
        "unknown": counts["unknown"],
        "stage": int(unit is None),
        "order": _place(task, unit) if unit is not None else None,
    }
    return write_marker(task.marker, task.part, result, task.inputs)


def _place(task: StageTask, unit: Unit) -> list[Any]:
    """Return a sort key for units that does not depend on which worker reads them."""
    return [task.sources.index(unit.source), masked(as_unicode(unit.file)), unit.number]


class _Sentences(NamedTuple):
    key: tuple[int, int]
    source: int
    sentences: list[str]
    note: bytes = b""


def _unit_documents(unit: Unit, task: StageTask, log: DropLog) -> Iterator[_Sentences]:
    """Read a unit, filter its documents and split them into sentences; log what is dropped."""
    settings = task.settings
    split = sentence_splitter(settings.language)
    check = document_filter(settings.filters, task.test_ngrams, split, settings.language)
    source = task.sources.index(unit.source)
    # A weight below 1 keeps this fraction of the source's documents; above 1 it repeats them later.
    weight = dict(settings.mix).get(unit.source, 1.0)
    keep = settings.keep_dropped
    try:
        for document in READERS[unit.reader](unit):
            log.read(source)
            if document.encoding:
                log.decoded(source, document.encoding)
            text, reason = document.text, document.dropped
            # The note is taken before filtering, so that it shows the text that was dropped.
            note = note_of(unit.source, document.title, text) if keep else b""
            if check is not None and not reason and text:
                text, reason = check(text)
            sentences = [] if reason else split(text)
            if not sentences:
                log.drop(source, reason or EMPTY, note)
                continue
            key = content_key(sentences, settings.seed)
            if weight < 1.0 and entries(key, weight) == 0:
                log.drop(source, LEFT_OUT, note)
                continue
            yield _Sentences(key, source, sentences, note)
    except OSError as error:
        raise unreadable(unit.file, error) from error


def _text_part_documents(task: StageTask) -> Iterator[_Sentences]:
    """Yield the documents of a text part, with the keys that they already have."""
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
        yield _Sentences(key, int(part.sources[number]), sentences, part.note(number))


def _as_text(documents: Iterable[_Sentences]) -> Iterator[PartDocument]:
    for document in documents:
        encoded = [s.encode("utf-8", "surrogatepass") for s in document.sentences]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        payload = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        yield PartDocument(document.key, document.source, lengths, payload, note=document.note)


def _as_tokens(
    documents: Iterable[_Sentences],
    words: Encoder,
    task: StageTask,
    log: DropLog,
    counts: Counter[str],
) -> Iterator[PartDocument]:
    """Tokenize in batches of documents; drop empty sentences, and documents that are too short.

    Counts all tokens, and those that are unknown.
    """
    settings = task.settings
    weights = [dict(settings.mix).get(source, 1.0) for source in task.sources]
    for batch in _batches(documents):
        # Byte-level BPE gives a word different ids after a space, so it needs the sentence before.
        if isinstance(words, JsonEncoder):
            sentences = [
                words.in_running_text(sentence, before)
                for document in batch
                for before, sentence in pairwise(["", *document.sentences])
            ]
        else:
            sentences = [sentence for document in batch for sentence in document.sentences]
        ids, lengths = words.encode(sentences)
        counts["tokens"] += len(ids)
        counts["unknown"] += int(
            np.count_nonzero(
                (ids & ~WORD_START if isinstance(words, JsonEncoder) else ids) == words.unknown
            )
        )
        # Running sums locate each document's tokens within the batch.
        first = offsets_of([len(document.sentences) for document in batch])
        ends = offsets_of(lengths)[first].tolist()
        # Empty sentences are left out: locate the remaining ones of each document.
        full = lengths > 0
        ends_of_full = offsets_of(full)[first].tolist()
        own = lengths[full].astype(np.int32)
        for number, document in enumerate(batch):
            begin, end = ends[number], ends[number + 1]
            if end - begin < settings.min_tokens:
                log.drop(document.source, TOO_SHORT if end > begin else EMPTY, document.note)
                continue
            # A document with a weight above 1 occurs several times, each time under its own key.
            times = entries(document.key, weights[document.source])
            yield PartDocument(
                document.key,
                document.source,
                own[ends_of_full[number] : ends_of_full[number + 1]],
                ids[begin:end],
                bands=_bands(document, settings),
                repeats=tuple(repeat_key(document.key, i) for i in range(1, times)),
                note=document.note,
            )


def _bands(document: _Sentences, settings: PrepSettings) -> np.ndarray | None:
    """Return the hashes of the document's MinHash bands, or None without ``--dedup minhash``."""
    if settings.dedup != "minhash":
        return None
    from data_prep.selection.minhash import band_hashes

    return band_hashes("\n".join(document.sentences), settings.minhash)


def _batches(documents: Iterable[_Sentences]) -> Iterator[list[_Sentences]]:
    """Group documents into batches of about 524,288 characters, which are tokenized together."""
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
