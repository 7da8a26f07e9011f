"""A plain text file, tokenised when training starts, as one token shard in memory.

One sentence a line, an empty line between documents (the input of Google's, NVIDIA's and NeMo's
scripts). For corpora beyond some hundred megabytes preparation is the better way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertds.data.formats.token_shards import TokenShard, token_dtype
from bertds.data.tokenizer_json import WORD_START, JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo
from bertds.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LINES_AT_ONCE = 2_048


def sentence_encoder(
    tokenizer: TokenizerInfo,
) -> Callable[[list[tuple[str, bool]]], list[np.ndarray]]:
    """Return what turns sentences into ids, with WORD_START unless it is WordPiece.

    A sentence comes with whether it is the first of its document.
    """
    if not tokenizer.is_wordpiece:
        model = JsonTokenizer(tokenizer.main_file)

        def encode(sentences: list[tuple[str, bool]]) -> list[np.ndarray]:
            ids, lengths = model.encode(model.in_running_text(*one) for one in sentences)
            return np.split(ids, np.cumsum(lengths)[:-1]) if sentences else []

        return encode
    wordpiece = wordpiece_tokenizer(tokenizer)
    return lambda sentences: [
        np.array(encoding.ids, np.uint32)
        for encoding in wordpiece.encode_batch_fast(
            [text for text, _ in sentences], add_special_tokens=False
        )
    ]


def wordpiece_tokenizer(tokenizer: TokenizerInfo) -> Tokenizer:
    """Return a ``tokenizers.Tokenizer`` that gives BERT's WordPiece ids, without special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    ids = {token: number for number, token in enumerate(tokenizer.vocabulary())}
    built = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    rules = tokenizer.rules
    built.normalizer = BertNormalizer(
        lowercase=rules.lower_case,
        strip_accents=rules.strip_accents,
        handle_chinese_chars=rules.chinese_characters,
    )
    built.pre_tokenizer = BertPreTokenizer()
    return built


def text_shard(path: Path, tokenizer: TokenizerInfo) -> TokenShard:
    """Tokenise a text file.

    Raises:
        DataError: it cannot be read, holds no sentence, or a line is not UTF-8 (named by number).
    """
    encode = sentence_encoder(tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    pieces: list[np.ndarray] = []
    sentence_lengths: list[int] = []
    document_lengths = [0]
    first = True
    for batch in _batches(path):
        texts = []
        for line in batch:
            if line:
                texts.append((line, first))
            first = not line
        encoded = iter(encode(texts))
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
        raise DataError(f"{path}: holds no text")
    if not document_lengths[-1]:
        document_lengths.pop()
    ids = np.concatenate(pieces)
    return TokenShard.from_arrays(
        str(path),
        (ids & ~WORD_START).astype(dtype),
        np.concatenate([[0], np.cumsum(sentence_lengths)]),
        np.concatenate([[0], np.cumsum(document_lengths)]),
        word_starts=None if tokenizer.is_wordpiece else ids >= WORD_START,
    )


def _batches(path: Path) -> Iterator[list[str]]:
    """Yield stripped lines, many at a time; an empty one ends a document."""
    batch: list[str] = []
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
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
