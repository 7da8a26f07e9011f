"""A plain text file, tokenized when training starts, as one token shard in memory.

One sentence per line, and an empty line between documents (the input of Google's, NVIDIA's and
NeMo's scripts). Prepare corpora of more than some hundred megabytes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bertds.data.formats.token_shards import TokenShard, offsets_of, token_dtype
from bertds.data.tokenizer_json import WORD_START, JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo
from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from bertds.errors import DataError

_LINES_AT_ONCE = 2_048


def sentence_encoder(
    tokenizer: TokenizerInfo,
) -> Callable[[list[tuple[str, str]]], list[np.ndarray]]:
    """Return a function from sentences to arrays of ids; WordPiece sets no WORD_START bits.

    Each sentence is passed with the one before it in its document, or "" if it is the first.
    """
    if not tokenizer.is_wordpiece:
        model = JsonTokenizer(tokenizer.main_file)

        def encode(sentences: list[tuple[str, str]]) -> list[np.ndarray]:
            ids, lengths = model.encode(model.in_running_text(*one) for one in sentences)
            return np.split(ids, np.cumsum(lengths)[:-1]) if sentences else []

        return encode
    ids = {token: number for number, token in enumerate(tokenizer.vocabulary())}
    wordpiece = wordpiece_pipeline(ids, tokenizer.rules)
    return lambda sentences: [
        np.array(encoding.ids, np.uint32)
        for encoding in wordpiece.encode_batch_fast(
            [text for text, _ in sentences], add_special_tokens=False
        )
    ]


def text_shard(path: Path, tokenizer: TokenizerInfo) -> TokenShard:
    """Tokenize a text file.

    Raises:
        DataError: it cannot be read, has no sentence, or a line is not UTF-8 (the message has its
            number).
    """
    encode = sentence_encoder(tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    pieces: list[np.ndarray] = []
    sentence_lengths: list[int] = []
    document_lengths = [0]
    before = ""
    # Encode in batches, which the tokenizers library does in parallel.
    for batch in _batches(path):
        texts = []
        for line in batch:
            if line:
                texts.append((line, before))
            before = line
        encoded = iter(encode(texts))
        # Assign the ids to sentences and documents; an empty line closes a document.
        for line in batch:
            if not line:
                if document_lengths[-1]:
                    document_lengths.append(0)
                continue
            ids = next(encoded)
            if len(ids):
                pieces.append(ids)
                sentence_lengths.append(len(ids))
                document_lengths[-1] += 1
    if not sentence_lengths:
        raise DataError(f"{path}: contains no text")
    if not document_lengths[-1]:  # the file ends with an empty line
        document_lengths.pop()
    ids = np.concatenate(pieces)
    return TokenShard.from_arrays(
        str(path),
        (ids & ~WORD_START).astype(dtype),
        offsets_of(sentence_lengths),
        offsets_of(document_lengths),
        word_starts=None if tokenizer.is_wordpiece else ids >= WORD_START,
    )


def _batches(path: Path) -> Iterator[list[str]]:
    """Yield stripped lines in batches; an empty line ends a document."""
    batch: list[str] = []
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:  # a byte order mark is not text
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    batch.append(raw.decode("utf-8").strip())
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}: line {number} is not UTF-8 (byte 0x{raw[error.start]:02x} at "
                        f"column {error.start + 1})"
                    ) from error
                if len(batch) >= _LINES_AT_ONCE:
                    yield batch
                    batch = []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    yield batch
