"""The identity of the data's tokenizer: size, casing, fingerprint, special ids and files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertds.data import tokenizer_json
from bertds.data.model_names import vocabulary_path
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary_file import (
    SPECIAL_TOKENS,
    has_tokenizer,
    read_vocabulary,
    vocabulary_file,
)
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import DataError
from bertds.system.json_fields import Field
from bertds.system.logs import log

MAX_VOCABULARY = 1 << 24
"""More tokens than any vocabulary has: a larger number is damage, or an attack on the memory."""
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
WORDPIECE = "wordpiece"
_FROM_TOKENIZER_JSON = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""transformers' classes that ignore the rules in tokenizer_config.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """The identity of a tokenizer, as stored in the manifest."""

    vocab_size: int
    lower_case: bool
    fingerprint: str
    """SHA-256. For WordPiece: of the bytes of vocab.txt, a newline, and ``uncased`` or ``cased``
    (with any deviations from these). For other models: of tokenizer.json and the special tokens."""
    special_ids: dict[str, int]
    """Ids of pad, unk, cls, sep and mask."""
    model: str = WORDPIECE
    """``wordpiece``: BERT's own. Otherwise the model in tokenizer.json: bpe, unigram, ..."""
    strip_accents: bool | None = None
    """None = the value of ``lower_case``."""
    chinese_characters: bool = True
    """Whether each ideograph is a separate word (WordPiece)."""
    special_tokens: dict[str, str] = field(default_factory=lambda: dict(SPECIAL_TOKENS))
    """Names of pad, unk, cls, sep and mask."""
    files: dict[str, Path] = field(default_factory=dict, compare=False)
    """Paths of vocab.txt, tokenizer.json and tokenizer_config.json; not part of the identity."""

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's ``tokenizer`` object."""
        value: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "lower_case": self.lower_case,
            "fingerprint": self.fingerprint,
            "special_ids": dict(self.special_ids),
        }
        # Values that BERT's own tokenizer does not need are left out, as in older manifests.
        if self.strip_accents is not None:
            value["strip_accents"] = self.strip_accents
        if not self.chinese_characters:
            value["chinese_characters"] = False
        if self.model != WORDPIECE:
            value |= {"model": self.model, "special_tokens": dict(self.special_tokens)}
        return value

    @property
    def is_wordpiece(self) -> bool:
        """Whether it is BERT's own model, whose pieces show whether they continue a word."""
        return self.model == WORDPIECE

    @property
    def rules(self) -> WordPieceRules:
        """The rules applied to text before pieces are looked up (WordPiece)."""
        return WordPieceRules.of(self.lower_case, self.strip_accents, self.chinese_characters)

    @property
    def main_file(self) -> Path:
        """The file that contains the vocabulary.

        Raises:
            DataError: it is missing.
        """
        names = ["vocab.txt", tokenizer_json.FILE] if self.is_wordpiece else [tokenizer_json.FILE]
        for name in names:
            if name in self.files:
                return self.files[name]
        raise DataError(f"the tokenizer's {names[0]} is missing; set data.vocab")

    @staticmethod
    def from_field(given: Field, files: dict[str, Path] | None = None) -> TokenizerInfo:
        """Check the ``tokenizer`` object of a manifest.

        Args:
            given: the ``tokenizer`` object.
            files: the tokenizer files next to the manifest.

        Raises:
            UserError: (of the field's kind) a key is missing, unknown or impossible.
        """
        given.only((*_MANIFEST_KEYS, *_UNUSUAL_KEYS))
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
            **_unusual(given),
        )

    def vocabulary(self) -> list[str]:
        """Return the tokens in the order of their ids."""
        file = self.main_file
        if file.suffix == ".json":
            tokens = tokenizer_json.bert_wordpiece(tokenizer_json.read_tokenizer(file))
            return JsonTokenizer(file).tokens if tokens is None else tokens
        return read_vocabulary(file)

    def pieces(self) -> list[str]:
        """Return the tokens for a reader: ``##`` if a token continues a word."""
        return self.vocabulary() if self.is_wordpiece else JsonTokenizer(self.main_file).pieces()

    def continuation_pieces(self) -> np.ndarray:
        """Return bool [vocab_size]: True if the token continues a word (``##ing``)."""
        return np.array([t.startswith("##") for t in self.vocabulary()], dtype=np.bool_)


_MANIFEST_KEYS = ("vocab_size", "lower_case", "fingerprint", "special_ids")
_UNUSUAL_KEYS = ("model", "special_tokens", "strip_accents", "chinese_characters")


def _unusual(given: Field) -> dict[str, Any]:
    """Return the values of a manifest in which a tokenizer deviates from BERT's own."""
    found: dict[str, Any] = {}
    for name in ("strip_accents", "chinese_characters"):
        if (value := given.get(name)) is not None:
            found[name] = value.boolean()
    if (model := given.get("model")) is not None:
        names = given["special_tokens"].only(SPECIAL_TOKENS)
        found["model"] = model.text()
        found["special_tokens"] = {name: names[name].text() for name in SPECIAL_TOKENS}
    return found


def tokenizer_fingerprint(vocabulary_bytes: bytes, rules: WordPieceRules | bool) -> str:
    """Return the identity of a vocabulary and its rules as hexadecimal SHA-256.

    Args:
        vocabulary_bytes: the contents of vocab.txt.
        rules: the rules applied to text; a bool means BERT's own, uncased (True) or cased.
    """
    if isinstance(rules, bool):
        rules = WordPieceRules.of(rules)
    return hashlib.sha256(vocabulary_bytes + b"\n" + rules.casing.encode()).hexdigest()


def looks_lower_case(tokens: list[str]) -> bool:
    """Guess the casing: a vocabulary without upper-case tokens is uncased."""
    special = set(SPECIAL_TOKENS.values())
    return not any(
        token != token.lower()
        for token in tokens
        if token not in special and not token.startswith("[unused")
    )


def load_tokenizer_info(
    path: Path | str,
    lower_case: bool | None = None,
    strip_accents: bool | None = None,
    chinese_characters: bool | None = None,
) -> TokenizerInfo:
    """Describe the tokenizer of a ``vocab.txt``, a ``tokenizer.json``, or a folder with one.

    Args:
        path: the file or folder, or a name of ``bertds models``. If a folder has both files and
            they differ, its tokenizer.json decides.
        lower_case: the casing; None = from ``tokenizer_config.json`` in the folder, else from
            ``tokenizer.json``, else from the vocabulary itself (see :func:`looks_lower_case`). A
            JSON file with another name is a ``tokenizer.json`` that decides on its own.
        strip_accents: None = as in the files or, without a value there, as ``lower_case``.
        chinese_characters: None = as in the files, or True.

    Raises:
        DataError: there is no vocabulary, it lacks one of the five special tokens, or the
            requested casing differs from that of a tokenizer whose file decides it.
    """
    path = vocabulary_path(path)
    file = vocabulary_file(path)
    # A tokenizer.json that is BERT's WordPiece is treated like a vocab.txt; any other decides
    # alone.
    content: dict[str, Any] = {}
    if file.suffix == ".json":
        content = tokenizer_json.read_tokenizer(file)
        tokens = tokenizer_json.bert_wordpiece(content)
        if tokens is None:
            return _json_info(file, (lower_case, strip_accents, chinese_characters))
        vocabulary = "".join(f"{token}\n" for token in tokens).encode()
    else:
        tokens, vocabulary = read_vocabulary(file), file.read_bytes()
    special_ids = _special_ids(file, tokens)
    # Arguments have precedence over the files, and the files over a guess.
    said = _said_rules(file, content)
    if lower_case is None:
        lower_case = said.get("do_lower_case")
    if lower_case is None:
        lower_case = looks_lower_case(tokens)
    rules = WordPieceRules.of(
        bool(lower_case),
        said.get("strip_accents") if strip_accents is None else strip_accents,
        said.get("tokenize_chinese_chars") if chinese_characters is None else chinese_characters,
    )
    unusual = rules.strip_accents != rules.lower_case
    return TokenizerInfo(
        vocab_size=len(tokens),
        lower_case=rules.lower_case,
        fingerprint=tokenizer_fingerprint(vocabulary, rules),
        special_ids=special_ids,
        strip_accents=rules.strip_accents if unusual else None,
        chinese_characters=rules.chinese_characters,
        files=_files(path, file),
    )


def _said_rules(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the text rules in the files of a WordPiece, by transformers' names.

    Args:
        file: of the vocabulary.
        content: of ``file``, if it is a ``tokenizer.json`` under any name.
    """
    if content and file.name != tokenizer_json.FILE:
        # It contains all rules; the files next to it may belong to another tokenizer.
        return dict(tokenizer_json.normalizer_rules(content))
    config, sibling = file.parent / tokenizer_json.CONFIG, file.parent / tokenizer_json.FILE
    said = tokenizer_json.read_json(config) if config.is_file() else {}
    # Japanese BERTs, for example, divide words with MeCab in the code of their class.
    for name, own in (("word_tokenizer_type", "basic"), ("subword_tokenizer_type", "wordpiece")):
        if said.get(name, own) != own:
            raise DataError(
                f"{config}: {name}={said[name]!r} is not supported, because it needs the code of "
                f"its tokenizer class; allowed: {own!r}, or a tokenizer.json with all rules"
            )
    if sibling.is_file():
        rules = tokenizer_json.normalizer_rules(content or tokenizer_json.read_tokenizer(sibling))
        if said.get("tokenizer_class") in _FROM_TOKENIZER_JSON:
            return said | rules
        if "do_lower_case" not in said:
            return rules | said
    return said


def vocabulary_size(folder: Path) -> int:
    """Return the number of tokens of a folder's tokenizer, or 0 if it has none.

    Raises:
        DataError: see :func:`load_tokenizer_info`.
    """
    return load_tokenizer_info(folder).vocab_size if has_tokenizer(folder) else 0


def warn_of_other_rules(place: Path, theirs: TokenizerInfo, data: TokenizerInfo) -> None:
    """Warn if a model's tokenizer treats text differently from that of the data.

    The vocabularies are equal, so it works, but the model gets other tokens than it was trained on.
    """
    if theirs.rules != data.rules:
        log.warning(
            "%s: its tokenizer is %s, but that of the data is %s; prepare the data with the "
            "model's own tokenizer folder",
            place,
            theirs.rules.casing,
            data.rules.casing,
        )


def _files(path: Path, file: Path) -> dict[str, Path]:
    """Return the files of a tokenizer; those next to a named file may belong to another one."""
    names: tuple[str, ...] = TOKENIZER_FILES if path.is_dir() else ()
    if not path.is_dir() and file.name == tokenizer_json.FILE:
        names = (tokenizer_json.CONFIG,)
    if file.suffix == ".json":
        # vocab.txt has less information, or different information.
        names = tuple(name for name in names if name != "vocab.txt")
    own = {name: file.parent / name for name in names if (file.parent / name).is_file()}
    return own | {tokenizer_json.FILE if file.suffix == ".json" else "vocab.txt": file}


def _special_ids(file: Path, tokens: list[str]) -> dict[str, int]:
    missing = [token for token in SPECIAL_TOKENS.values() if token not in tokens]
    if missing:
        raise DataError(
            f"{file}: the vocabulary ({len(tokens)} tokens) does not contain "
            f"{', '.join(missing)}; BERT requires {', '.join(SPECIAL_TOKENS.values())}"
        )
    return {name: tokens.index(token) for name, token in SPECIAL_TOKENS.items()}


def _json_info(file: Path, asked: tuple[bool | None, ...]) -> TokenizerInfo:
    """Describe a tokenizer that is not BERT's WordPiece; its file decides all rules."""
    tokenizer = JsonTokenizer(file)
    config = file.parent / tokenizer_json.CONFIG  # contains the names of the special tokens
    is_so = (tokenizer.lower_case, tokenizer.lower_case, True)
    if any(wanted is not None and wanted != found for wanted, found in zip(asked, is_so)):
        raise DataError(
            f"{file}: a {tokenizer.model} tokenizer: casing and accents are set in its file; omit "
            "--cased, --uncased, --keep-accents and data.lower_case"
        )
    return TokenizerInfo(
        vocab_size=len(tokenizer.tokens),
        lower_case=tokenizer.lower_case,
        fingerprint=tokenizer.fingerprint,
        special_ids=tokenizer.special_ids,
        model=tokenizer.model,
        special_tokens=tokenizer.special_tokens,
        files={tokenizer_json.FILE: file}
        | ({tokenizer_json.CONFIG: config} if config.is_file() else {}),
    )
