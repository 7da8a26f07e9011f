"""All settings that decide which bytes preparation writes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from bertds.config.row_settings import RowSettings
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import ConfigError
from data_prep.selection.filters import FilterSettings
from data_prep.selection.minhash import MinHashSettings
from data_prep.selection.mixing import Mix

DEDUP = ("exact", "minhash", "none")
_REMOVED = {"tokeniser"}
"""Settings of earlier versions that did not change the shards, and are therefore not compared."""


@dataclass(frozen=True, kw_only=True)
class PrepSettings:
    """Settings that change the result; all are recorded in the manifest."""

    seed: int = 12345
    """Decides the order of documents, the split, pairs and masks of instance files."""
    lower_case: bool = True
    strip_accents: bool | None = None
    """None: as ``lower_case``."""
    chinese_characters: bool = True
    """Whether each ideograph is a word of its own."""
    tokenizer_model: str = "wordpiece"
    """The type that tokenizer.json names: wordpiece, bpe, unigram, ..."""
    vocab_size: int = 0
    """Number of tokens of the vocabulary to train; 0 = one was given."""
    vocab_sample_bytes: int = 100_000_000
    """A vocabulary is trained on about this much text; a hash selects the documents."""
    vocab_sha256: str = ""
    """SHA-256 of the vocabulary that was given."""
    wiki_templates_sha256: str = ""
    """SHA-256 of the file of ``--wiki-templates``."""
    language: str = "en"
    """Language whose sentence rules sentencex uses."""
    min_tokens: int = 8
    """Documents with fewer tokens are dropped as too_short."""
    shard_tokens: int = 4_000_000
    """Approximate number of tokens in a shard."""
    validation_fraction: float = 0.005
    """Fraction of documents that is held out; at least 2 documents unless 0."""
    dataset: str = "corpus"
    """Name of the instance files, as NVIDIA's readers expect it."""
    instances: tuple[RowSettings, ...] = ()
    """The settings ``rows`` with the lengths of each ``--instances``."""
    dupe_factor: int = 5
    rows: RowSettings = field(default_factory=RowSettings)
    """Masks and pairs of all instance files."""
    compression: str = "gzip"
    filters: FilterSettings = field(default_factory=FilterSettings)
    """Requirements on a document."""
    dedup: str = "exact"
    """exact: equal texts enter once; minhash: near-duplicates too; none: all texts enter."""
    minhash: MinHashSettings = field(default_factory=MinHashSettings)
    mix: Mix = ()
    """Weights of sources, where they are not 1."""
    keep_dropped: bool = False
    """Whether OUT/dropped holds the documents that were left out."""

    def __post_init__(self) -> None:
        checks = [
            # sentencex accepts any word as a language, and falls back to the rules of another one.
            (
                "--language",
                self.language,
                re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", self.language),
                "a code such as en, de, zh-yue",
            ),
            # The seed is the key of a hash, as a signed number of 16 bytes.
            ("--seed", self.seed, -(2**127) <= self.seed < 2**127, "-2^127 to 2^127 - 1"),
            ("--min-tokens", self.min_tokens, self.min_tokens >= 1, "1 or more"),
            ("--shard-tokens", self.shard_tokens, self.shard_tokens >= 1000, "1000 or more"),
            (
                "--validation-fraction",
                self.validation_fraction,
                0.0 <= self.validation_fraction <= 0.5,
                "0 to 0.5",
            ),
            ("--dupe-factor", self.dupe_factor, 1 <= self.dupe_factor <= 1000, "1 to 1000"),
            (
                "--train-vocab",
                self.vocab_size,
                self.vocab_size == 0 or 300 <= self.vocab_size <= 1_000_000,
                "300 to 1000000",
            ),
            (
                "--vocab-sample-bytes",
                self.vocab_sample_bytes,
                self.vocab_sample_bytes >= 10_000,
                "10000 or more",
            ),
        ]
        for option, value, good, allowed in checks:
            if not good:
                raise ConfigError(f"{option} {value}: allowed: {allowed}")

    @property
    def rules(self) -> WordPieceRules:
        """How WordPiece normalizes text before it looks up pieces."""
        return WordPieceRules.of(self.lower_case, self.strip_accents, self.chinese_characters)

    @property
    def is_wordpiece(self) -> bool:
        """Whether the tokenizer is BERT's own."""
        return self.tokenizer_model == "wordpiece"

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's ``settings``."""
        # The lengths differ between the kinds of instance files; all else is the same for all.
        shape = ("sequence_length", "max_predictions")
        value: dict[str, Any] = {}
        for name, found in asdict(self).items():
            value |= found if name == "rows" else {name: found}
        value["instances"] = [{key: one[key] for key in shape} for one in value["instances"]]
        for key in shape:
            del value[key]
        # Defaults of newer settings are omitted, so that manifests of older versions still match.
        default = asdict(PrepSettings())
        for key in (
            "filters",
            "dedup",
            "minhash",
            "mix",
            "keep_dropped",
            "strip_accents",
            "chinese_characters",
            "tokenizer_model",
            "wiki_templates_sha256",
        ):
            if value[key] == default[key]:
                del value[key]
        if self.mix:
            value["mix"] = dict(self.mix)
        return value


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe the keys in which two settings differ: ``seed: 1 before, 2 now``."""
    return [
        f"{key}: {before.get(key)} before, {now.get(key)} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and key not in _REMOVED
    ]
