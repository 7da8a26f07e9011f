"""Trains a vocabulary (deterministically), and writes the files that transformers loads."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bertds.data.tokenizer_folder import bert_tokenizer_config, bert_tokenizer_json
from bertds.data.vocabulary_file import SPECIAL_TOKENS, read_vocabulary
from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import DataError
from bertds.system.atomic_files import atomic_path, write_text
from bertds.system.start_up import pattern_on_first_use
from data_prep.stages.part_files import open_part

_ALPHABET = 1000
_WANTED_COVERAGE, _LEAST_COVERAGE = 0.9995, 0.99
# The ideographs of BERT's tokenizer; they include neither kana nor Hangul.
_IDEOGRAPH = pattern_on_first_use(
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)
_BUCKET_BITS = 20


def train_vocabulary(
    parts: Sequence[Path], size: int, rules: WordPieceRules, sample_bytes: int
) -> list[str]:
    """Train a WordPiece vocabulary on the text of (a sample of) the documents.

    The trainer of ``tokenizers`` numbers the pieces ``##x`` in the order of a randomly seeded hash
    table, and breaks ties by these numbers, so two runs differ. Passing the whole alphabet as its
    first tokens, plain and as ``##x``, fixes the numbers and so the result.

    Args:
        parts: text parts.
        size: requested number of tokens; a small text may give fewer.
        rules: the rules applied to text before pieces are looked up.
        sample_bytes: approximate number of bytes of text to read. The sample is the documents with
            the highest keys. They are in the validation split only if it is the whole corpus.

    Raises:
        DataError: there is no text.
    """
    from tokenizers import Tokenizer, models, trainers

    pipeline = wordpiece_pipeline({"[UNK]": 0}, rules)
    # A first pass counts characters, a second one trains.
    lowest = _sample_start(parts, sample_bytes)
    characters: Counter[str] = Counter()
    for sentence in _sentences(parts, lowest):
        characters.update(pipeline.normalizer.normalize_str(sentence))
    alphabet = choose_alphabet(characters, size, rules)
    # Punctuation marks and ideographs are separate words and never continue one.
    alone = {f"##{c}" for c in alphabet if _stands_alone(c, rules)}
    first = [*SPECIAL_TOKENS.values(), *alphabet, *(f"##{c}" for c in alphabet)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    # The `##x` that never occur are removed afterwards, so as many more tokens are trained.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size + len(alone),
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(parts, lowest), trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return [t for t in sorted(vocabulary, key=vocabulary.__getitem__) if t not in alone]


def choose_alphabet(characters: Counter[str], size: int, rules: WordPieceRules) -> list[str]:
    """Return the characters that become tokens, sorted.

    These are the most frequent ones that make up 99.95% of the text, at least 1,000, and all of
    ASCII that occurs. There are fewer if ``size`` has no room, but at least 99% of the text must
    be covered.

    Raises:
        DataError: there is no text, or ``size`` is too small.
    """
    counts = Counter({c: n for c, n in characters.items() if not c.isspace()})
    total = counts.total()
    if not total:
        raise DataError("there is no text to train a vocabulary on")
    # ASCII first, then by frequency; the character itself breaks ties.
    ordered = sorted(counts, key=lambda c: (not c.isascii(), -counts[c], c))
    alphabet: list[str] = []
    covered, needed = 0, len(SPECIAL_TOKENS)
    for character in ordered:
        if len(alphabet) >= _ALPHABET and covered >= _WANTED_COVERAGE * total:
            break
        # Most characters need two tokens, `x` and `##x`.
        more = 1 if _stands_alone(character, rules) else 2
        if needed + more > size and covered >= _LEAST_COVERAGE * total:
            break
        alphabet.append(character)
        covered += counts[character]
        needed += more
    if needed > size:
        raise DataError(
            f"--train-vocab {size}: the text has {len(counts)} distinct characters, so at least "
            f"{needed} tokens are required"
        )
    return sorted(alphabet)


def _stands_alone(character: str, rules: WordPieceRules) -> bool:
    ascii_symbol = character.isascii() and not character.isalnum()
    return (
        ascii_symbol
        or unicodedata.category(character).startswith("P")
        or (rules.chinese_characters and _IDEOGRAPH.match(character) is not None)
    )


def _sample_start(parts: Sequence[Path], sample_bytes: int) -> int:
    """Return the lowest key of the sample: the highest keys have ``sample_bytes`` of text."""
    shift = np.uint64(64 - _BUCKET_BITS)
    total = np.zeros(1 << _BUCKET_BITS)
    for path in parts:
        part = open_part(path)
        buckets = (part.key_high >> shift).astype(np.int64)
        lengths = np.diff(part.payload_ends, prepend=0)
        total += np.bincount(buckets, weights=lengths, minlength=len(total))
    # Sum up from the highest keys downwards, to find where the sample is large enough.
    from_above = np.cumsum(total[::-1])[::-1]
    enough = np.flatnonzero(from_above >= sample_bytes)
    return (int(enough[-1]) if len(enough) else 0) << int(shift)


def _sentences(parts: Sequence[Path], lowest: int) -> Iterator[str]:
    for path in parts:
        part = open_part(path)
        for number in range(part.range(lowest, 1 << 64)[0], part.documents):
            begin, _ = part.payload_of(number)
            first, last = part.sentences_of(number)
            for length in part.lengths[first:last].tolist():
                yield bytes(part.payload[begin : begin + length]).decode("utf-8", "replace")
                begin += length


def write_vocabulary(path: Path, tokens: Sequence[str]) -> None:
    """Write ``vocab.txt``."""
    write_text(path, "".join(f"{token}\n" for token in tokens))


def write_tokenizer_folder(folder: Path, vocab_bytes: bytes, rules: WordPieceRules) -> None:
    """Write ``vocab.txt``, ``tokenizer.json`` and ``tokenizer_config.json`` for transformers.

    Args:
        folder: created if missing.
        vocab_bytes: the contents of vocab.txt, written unchanged.
        rules: the rules applied to text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "vocab.txt") as temporary:
        temporary.write_bytes(vocab_bytes)
    tokens = read_vocabulary(folder / "vocab.txt")
    write_text(folder / "tokenizer.json", bert_tokenizer_json(tokens, rules))
    config = bert_tokenizer_config(rules, 512)
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
