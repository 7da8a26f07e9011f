"""Reads ``tokenizer.json`` and encodes text with the ``tokenizers`` library.

```text
BERT's WordPiece          -> tokens and rules; the rest of the code reads it like a vocab.txt
anything else             -> JsonTokenizer: byte-level BPE, SentencePiece unigram and BPE, ...
```

Rows have the layout ``cls A sep B sep`` with segments 0 and 1 for every model. If a file has a
different template (RoBERTa's ``</s></s>``, or none), it is exported with ours, so that programs
that read the exported folder build the rows that the model was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertds.data.scripts import sentence_gap
from bertds.errors import DataError
from bertds.system.json_fields import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.processors import PostProcessor

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
WORD_START = np.uint32(1 << 31)
"""Added to the id of a token that begins a word, between the encoder and the shard."""

# Token names by purpose, as used by files without a configuration.
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_WORD_MARKS = ("\u0120", "\u2581")
"""A space, as byte-level BPE and SentencePiece write it."""
_AT_ONCE = 4096
_LONGEST = 1 << 20
"""Maximum length in tokens; transformers writes 10^30 if no length is known."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises DataError in one line."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object ({type(value).__name__})")
    return value


_SPARE_IDS = 1 << 20
"""The number of ids without a token that a file may have, besides as many as it has tokens."""


def read_tokenizer(path: Path) -> dict[str, Any]:
    """Read a ``tokenizer.json``, and check the parts of it that this module uses.

    Two tokens with one id would make a row of the vocabulary ambiguous. An id far above the others
    would allocate a table of gigabytes.

    Raises:
        DataError: a part is wrong; the message names the key.
    """
    content = read_json(path)
    parts = {}
    for key in ("model", "normalizer", "pre_tokenizer", "post_processor"):
        parts[key] = content.get(key) or {}
        if not isinstance(parts[key], dict):
            raise DataError(f"{path}: {key} is not an object")
    for name, value in normalizer_rules(content).items():
        if not isinstance(value, bool | None):
            raise DataError(f"{path}: normalizer: {name} is {value!r:.40}; must be true or false")
    # Collect all ids: a vocabulary is an object, or for unigram models a list without ids.
    ids: dict[str, Any] = {}
    if isinstance(vocabulary := parts["model"].get("vocab"), dict):
        ids |= vocabulary
    elif not isinstance(vocabulary, list | None):
        raise DataError(f"{path}: model.vocab is neither an object nor a list")
    for number, pair in enumerate(vocabulary if isinstance(vocabulary, list) else ()):
        if not isinstance(pair, list) or not pair or not isinstance(pair[0], str):
            raise DataError(f"{path}: model.vocab[{number}] is not a token with its score")
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise DataError(f"{path}: added_tokens is not a list")
    for number, token in enumerate(added):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise DataError(f"{path}: added_tokens[{number}] is not a token with content and id")
        ids[token["content"]] = token.get("id")
    odd = next((token for token, one in ids.items() if type(one) is not int or one < 0), None)
    if odd is not None:
        raise DataError(f"{path}: the id of {odd!r:.60} is {ids[odd]!r:.40}; must be 0 or more")
    if len(set(ids.values())) < len(ids):
        first: dict[int, str] = {}
        twice = next(t for t, one in ids.items() if first.setdefault(one, t) != t)
        raise DataError(
            f"{path}: {first[ids[twice]]!r:.60} and {twice!r:.60} have the same id {ids[twice]}"
        )
    # A fixed padding length would make every encoded text that long.
    padding = content.get("padding") or {}
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    for length in (fixed, padding.get("pad_to_multiple_of") if strategy else None):
        if length is not None and (type(length) is not int or length > _LONGEST):
            raise DataError(f"{path}: pads to {length!r:.40} tokens; allowed: at most {_LONGEST:,}")
    count = len(ids) + (len(vocabulary) if isinstance(vocabulary, list) else 0)
    if ids and (largest := max(ids.values())) > 2 * count + _SPARE_IDS:
        raise DataError(
            f"{path}: the largest id is {largest:,}, but there are only {count:,} tokens"
        )
    return content


def bert_wordpiece(content: Mapping[str, Any]) -> list[str] | None:
    """Return the tokens of a ``tokenizer.json`` that is equivalent to BERT's own tokenizer.

    None if it is another model, or a WordPiece that divides text differently.
    """
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    usual = (
        model.get("type", "WordPiece") == "WordPiece"
        and isinstance(model.get("vocab"), dict)
        and "continuing_subword_prefix" in model
        and model["continuing_subword_prefix"] == "##"
        and model.get("unk_token") == "[UNK]"
        and model.get("max_input_chars_per_word", 100) == 100
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and (content.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        # Other added tokens would be found in the text before it is divided into words.
        and all(token.get("special") for token in content.get("added_tokens") or ())
    )
    if not usual:
        return None
    # A vocab.txt can express only ids without gaps, and tokens without line breaks.
    by_id = tokens_by_id(content)
    tokens = [by_id[number] for number in sorted(by_id)]
    dense = len(by_id) == max(by_id, default=-1) + 1
    return tokens if dense and not any("\n" in token for token in tokens) else None


def tokens_by_id(content: Mapping[str, Any]) -> dict[int, str]:
    """Return id -> token of a ``tokenizer.json`` that :func:`read_tokenizer` accepts."""
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram: pairs of token and score
        vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    return {number: token for token, number in {**vocabulary, **added}.items()}


def normalizer_rules(content: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return the BertNormalizer's settings in a ``tokenizer.json``, by transformers' names."""
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    return {
        "do_lower_case": normalizer.get("lowercase"),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
    }


class JsonTokenizer:
    """A tokenizer of any model, as in its file, except for the layout of rows."""

    def __init__(self, path: Path) -> None:
        """Load ``path`` and the names of the special tokens from files next to it.

        Raises:
            DataError: it is damaged, or has no token for one of the five purposes.
        """
        from tokenizers import Tokenizer

        self.path = path
        given = read_tokenizer(path)
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: the tokenizers library cannot read it ({error})") from error
        model = str((given.get("model") or {}).get("type", "unknown")).lower()
        self.model = "custom_wordpiece" if model == "wordpiece" else model
        self.special_tokens = _special_tokens(path, self._tokenizer)
        self.special_ids = {
            name: self._tokenizer.get_vocab(with_added_tokens=True)[token]
            for name, token in self.special_tokens.items()
        }
        self.content = path.read_bytes()
        if not self._has_our_layout():
            self._tokenizer.post_processor = self._our_layout(given)
            self.content = (self._tokenizer.to_str(pretty=True) + "\n").encode()
        # The file may truncate or pad texts; here every token of the corpus is needed.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text that contains the name of a special token is ordinary text.
        self._tokenizer.encode_special_tokens = True
        self._not_text = [n for purpose, n in self.special_ids.items() if purpose != "unk"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the exported file and the names of the special tokens."""
        names = json.dumps(self.special_tokens, sort_keys=True).encode()
        return hashlib.sha256(self.content + b"\n" + names).hexdigest()

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens by id, including added ones; "" if an id has none."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(ids.values()) + 1)
        for token, number in ids.items():
            tokens[number] = token
        return tokens

    def pieces(self) -> list[str]:
        """Return the tokens as text with WordPiece's marks: ``##`` if a token continues a word.

        For display only: it is guessed from the token. Letters without a space before them
        continue a word.
        """
        decode, marked = self._tokenizer.decode, []
        for number, token in enumerate(self.tokens):
            if token in self.special_tokens.values():
                marked.append(token)
                continue
            begins = token[:1] in _WORD_MARKS
            text = decode([number], skip_special_tokens=False)
            text = text.strip() or ("␣" if text else token)
            marked.append(text if begins or not text[0].isalnum() else f"##{text}")
        return marked

    @property
    def lower_case(self) -> bool:
        """Whether text is lower-cased."""
        normalizer = self._tokenizer.normalizer
        return normalizer is not None and "A" not in normalizer.normalize_str("A")

    @cached_property
    def _space_matters(self) -> bool:
        """Whether a word after a space has ids different from those at the beginning of a text."""
        first, second, spaced, both = (self.ids(text) for text in ("a", "b", " b", "a b"))
        return both != first + second and both == first + spaced

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:
            raise DataError(f"{self.path}: a text cannot be tokenized ({error})") from error

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize sentences separately.

        Returns:
            ids: uint32 [T], plus WORD_START if a token begins a word.
            lengths: int64 [sentences], number of tokens per sentence; may be 0.
        """
        # Lone surrogates are not valid UTF-8, and the library refuses them.
        texts = [s.encode("utf-8", "replace").decode("utf-8") for s in sentences]
        ids: list[np.ndarray] = [np.zeros(0, np.uint32)]
        lengths = np.zeros(len(texts), np.int64)
        for begin in range(0, len(texts), _AT_ONCE):
            try:
                found = self._tokenizer.encode_batch(
                    texts[begin : begin + _AT_ONCE], add_special_tokens=False
                )
            except Exception as error:  # such as a model whose unknown token does not exist
                raise DataError(f"{self.path}: a text cannot be tokenized ({error})") from error
            for number, encoding in enumerate(found, begin):
                own = np.array(encoding.ids, np.uint32)
                # Unigram models have "<mask>" among their pieces, and some files do not mark it as
                # special. As a piece of text, it is unknown.
                own[np.isin(own, self._not_text)] = self.special_ids["unk"]
                # A token begins a word if its word number differs from the one before it.
                words = np.array([-1 if w is None else w for w in encoding.word_ids], np.int64)
                own[np.diff(words, prepend=-2) != 0] |= WORD_START
                ids.append(own)
                lengths[number] = len(own)
        return np.concatenate(ids), lengths

    def in_running_text(self, sentence: str, before: str) -> str:
        """Return a sentence such that the ids of all sentences are those of the running text.

        A byte-level BPE has one token for "It" and another for " It". So a sentence gets a space in
        front, unless it is the first or the script has none between sentences.

        Args:
            sentence: the sentence.
            before: the sentence before it in the document; "" if it is the first.
        """
        if not before or not self._space_matters:
            return sentence
        return sentence_gap(before, sentence) + sentence

    def write(self, folder: Path, length: int = 512) -> None:
        """Write a tokenizer folder that transformers can load."""
        from bertds.system.atomic_files import atomic_path, write_text

        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / FILE) as temporary:
            temporary.write_bytes(self.content)
        beside = self.path.parent / CONFIG
        longest = read_json(beside).get("model_max_length") if beside.is_file() else None
        if not isinstance(longest, int) or longest > _LONGEST:
            longest = length
        config = {
            # Loads the file unchanged; other classes build their own pipeline from parts of it.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": longest,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": token for name, token in self.special_tokens.items()},
        }
        write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _has_our_layout(self) -> bool:
        a, b = self.ids("a"), self.ids("b")  # first, because it raises an error in one line
        one, two = self._tokenizer.encode("a"), self._tokenizer.encode("a", "b")
        cls, sep = self.special_ids["cls"], self.special_ids["sep"]
        segments = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        return (
            one.ids == [cls, *a, sep]
            and two.ids == [cls, *a, sep, *b, sep]
            and two.type_ids == segments
        )

    def _our_layout(self, given: Mapping[str, Any]) -> PostProcessor:
        from tokenizers import processors

        cls, sep = self.special_tokens["cls"], self.special_tokens["sep"]
        template = processors.TemplateProcessing(
            single=[f"{cls}:0", "$A:0", f"{sep}:0"],
            pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
            special_tokens=[(cls, self.special_ids["cls"]), (sep, self.special_ids["sep"])],
        )
        if not _trims_offsets(given.get("post_processor") or {}):
            return template
        # Question answering needs the offsets of " word" to begin at the word.
        return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])


def _trims_offsets(processor: Mapping[str, Any]) -> bool:
    inner = processor.get("processors") or ()
    return bool(processor.get("trim_offsets")) or any(map(_trims_offsets, inner))


def _special_tokens(path: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the names of the special tokens: from files next to it, otherwise the usual ones."""
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", CONFIG):
        if (path.parent / name).is_file():
            named |= read_json(path.parent / name)
    found: dict[str, str] = {}
    # A named token must exist in the tokenizer; without a name, the usual spellings are tried.
    for purpose, usual in _NAMES.items():
        value = named.get(f"{purpose}_token")
        value = value.get("content") if isinstance(value, dict) else value
        candidates = [value] if isinstance(value, str) else usual
        token = next((t for t in candidates if tokenizer.token_to_id(t) is not None), None)
        if token is None:
            there = f"names {value!r}, which is not in it" if value else "does not define one"
            raise DataError(
                f"{path}: no {purpose} token: {CONFIG} {there}; BERT requires "
                f"{', '.join(_NAMES)}. Add the token, and {purpose}_token to {CONFIG}"
            )
        found[purpose] = token
    if len(set(found.values())) < len(found):
        raise DataError(
            f"{path}: two purposes share a special token ({found}); BERT requires 5 different ones"
        )
    return found
