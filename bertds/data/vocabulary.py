"""What the data says about its tokenizer: size, casing, fingerprint, special ids, files."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertds.errors import DataError
from bertds.system.json_fields import Field, parse_json

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MAX_VOCABULARY = 1 << 24
"""More tokens than any vocabulary has; a larger number is damage, or meant to fill the memory."""
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """The identity of a WordPiece tokenizer, as the manifest holds it."""

    vocab_size: int
    lower_case: bool
    fingerprint: str
    """SHA-256 over the bytes of vocab.txt, a newline, and ``uncased`` or ``cased``."""
    special_ids: dict[str, int]
    """Ids of pad, unk, cls, sep and mask."""
    files: dict[str, Path] = field(default_factory=dict, compare=False)
    """Where vocab.txt (and tokenizer.json, tokenizer_config.json) lie; not part of the identity."""

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's ``tokenizer`` object."""
        return {
            "vocab_size": self.vocab_size,
            "lower_case": self.lower_case,
            "fingerprint": self.fingerprint,
            "special_ids": dict(self.special_ids),
        }

    @staticmethod
    def from_field(given: Field, files: dict[str, Path] | None = None) -> TokenizerInfo:
        """Check what a manifest says of its tokenizer.

        Args:
            given: the ``tokenizer`` object.
            files: the files that lie beside it.

        Raises:
            UserError: (of the field's kind) a key is missing, unknown or impossible.
        """
        given.only(("vocab_size", "lower_case", "fingerprint", "special_ids"))
        size = given["vocab_size"].integer(len(SPECIAL_TOKENS), MAX_VOCABULARY)
        special = given["special_ids"].only(SPECIAL_TOKENS)
        ids = {name: special[name].integer(0, size - 1) for name in SPECIAL_TOKENS}
        if len(set(ids.values())) < len(ids):
            special.fail("five different ids")
        return TokenizerInfo(
            vocab_size=size,
            lower_case=given["lower_case"].boolean(),
            fingerprint=given["fingerprint"].sha256(),
            special_ids=ids,
            files=files or {},
        )

    def vocabulary(self) -> list[str]:
        """Return the tokens in the order of their ids."""
        if "vocab.txt" not in self.files:
            raise DataError("the tokenizer's vocab.txt is missing; set data.vocab")
        return read_vocabulary(self.files["vocab.txt"])

    def continuation_pieces(self) -> np.ndarray:
        """Return bool [vocab_size]: True where the token continues a word (``##ing``)."""
        return np.array([t.startswith("##") for t in self.vocabulary()], dtype=np.bool_)


def tokenizer_fingerprint(vocabulary_bytes: bytes, lower_case: bool) -> str:
    """Return the identity of a vocabulary and its casing as hexadecimal SHA-256."""
    casing = b"uncased" if lower_case else b"cased"
    return hashlib.sha256(vocabulary_bytes + b"\n" + casing).hexdigest()


def read_vocabulary(path: Path | str) -> list[str]:
    """Read a ``vocab.txt``: one token a line, the line number is the id.

    Raises:
        DataError: the file is missing, not UTF-8, or holds a token twice.
    """
    path = Path(path)
    try:
        # Split at "\n" alone: some vocabularies hold U+2028 or U+0085 as tokens.
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; is this a vocab.txt?") from error
    tokens = text.split("\n")
    if tokens and tokens[-1] == "":
        tokens.pop()
    if "\r" in text:
        tokens = [token.removesuffix("\r") for token in tokens]
    if len(set(tokens)) != len(tokens):
        twice, count = Counter(tokens).most_common(1)[0]
        assert count > 1
        raise DataError(f"{path}: the token {twice!r} stands there twice")
    return tokens


def looks_lower_case(tokens: list[str]) -> bool:
    """Guess the casing: a vocabulary without any upper-case token is an uncased one."""
    special = set(SPECIAL_TOKENS.values())
    return not any(
        token != token.lower()
        for token in tokens
        if token not in special and not token.startswith("[unused")
    )


def vocabulary_file(path: Path | str) -> Path:
    """Return the ``vocab.txt`` itself, or that of a tokenizer folder."""
    path = Path(path)
    return path / "vocab.txt" if path.is_dir() else path


def load_tokenizer_info(path: Path | str, lower_case: bool | None = None) -> TokenizerInfo:
    """Describe the tokenizer of a ``vocab.txt`` or of a folder that holds one.

    Args:
        path: a vocabulary file, or a transformers tokenizer folder with ``vocab.txt``.
        lower_case: the casing; None takes it from ``tokenizer_config.json`` beside the vocabulary,
            else from the vocabulary itself (see :func:`looks_lower_case`).

    Raises:
        DataError: no vocabulary there, or it misses one of the five special tokens.
    """
    path = Path(path)
    file = vocabulary_file(path)
    tokens = read_vocabulary(file)
    ids = {token: number for number, token in enumerate(tokens)}
    missing = [token for token in SPECIAL_TOKENS.values() if token not in ids]
    if missing:
        raise DataError(
            f"{file}: the vocabulary ({len(tokens)} tokens) misses {', '.join(missing)}; BERT "
            f"needs {', '.join(SPECIAL_TOKENS.values())}"
        )
    config = file.parent / "tokenizer_config.json"
    if lower_case is None and config.is_file():
        try:
            lower_case = parse_json(config.read_text(encoding="utf-8")).get("do_lower_case")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{config}: not a JSON object ({error})") from error
    if lower_case is None:
        lower_case = looks_lower_case(tokens)
    return TokenizerInfo(
        vocab_size=len(tokens),
        lower_case=bool(lower_case),
        fingerprint=tokenizer_fingerprint(file.read_bytes(), bool(lower_case)),
        special_ids={name: ids[token] for name, token in SPECIAL_TOKENS.items()},
        files={
            name: file.parent / name
            for name in TOKENIZER_FILES
            if name != "vocab.txt" and path.is_dir() and (file.parent / name).is_file()
        }
        | {"vocab.txt": file},
    )
