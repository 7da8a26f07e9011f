"""Settings by which documents become rows: lengths, masks and pairs, declared and checked once.

The recipe's ``data`` section (:class:`bertds.config.recipe.DataConfig`) and the options of
preparation take their defaults from here. Both make a :class:`RowSettings`, from which rows are
made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from bertds.errors import ConfigError

PairKind = Literal["nsp", "sop", "none"]
PAIRS: tuple[str, ...] = get_args(PairKind)


class ImpossibleRows(ConfigError):
    """A field of RowSettings has a value that no row can have.

    Attributes:
        field: name of the field.
        found: its value.
        allowed: a description of the allowed values.
    """

    def __init__(self, field: str, found: object, allowed: str) -> None:
        super().__init__(f"{field}={found}; allowed: {allowed}")
        self.field, self.found, self.allowed = field, found, allowed


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """The settings of rows.

    Raises:
        ImpossibleRows: a value is out of its range.
    """

    sequence_length: int = 128
    """Maximum row length in tokens, including special tokens."""
    max_predictions: int = 20
    """Maximum number of masked positions per row."""
    masked_lm_prob: float = 0.15
    """Fraction of a row's tokens that are masked. Special tokens are counted but never masked."""
    short_seq_prob: float = 0.1
    """Probability that a row is given a random target length shorter than sequence_length."""
    whole_word_masking: bool = False
    ngram: int = 1
    """Maximum number of consecutive words masked together; above 1, whole words are masked."""
    pairs: PairKind = "nsp"

    def __post_init__(self) -> None:
        if self.pairs not in PAIRS:
            raise ImpossibleRows("pairs", repr(self.pairs), ", ".join(PAIRS))
        # At least one token in each segment.
        least = self.special_tokens + 2
        checks = (
            (
                "sequence_length",
                least <= self.sequence_length <= 32_767,
                f"{least} to 32767",
            ),
            (
                "max_predictions",
                1 <= self.max_predictions < self.sequence_length,
                f"1 to {self.sequence_length - 1}; it must be below sequence_length="
                f"{self.sequence_length}",
            ),
            ("masked_lm_prob", 0.0 < self.masked_lm_prob < 1.0, "between 0 and 1"),
            ("short_seq_prob", 0.0 <= self.short_seq_prob <= 1.0, "0 to 1"),
            ("ngram", 1 <= self.ngram <= 16, "1 to 16 (1 = no runs)"),
        )
        for name, good, allowed in checks:
            if not good:
                raise ImpossibleRows(name, getattr(self, name), allowed)

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, object], *, sequence_length: int, max_predictions: int
    ) -> RowSettings:
        """Take masks and pairs from a mapping that may have other keys, such as a manifest's.

        Raises:
            ImpossibleRows: a value is out of its range.
        """
        shape = {"sequence_length": sequence_length, "max_predictions": max_predictions}
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{**known, **shape})  # type: ignore[arg-type]

    @property
    def special_tokens(self) -> int:
        """Number of special tokens in a row: [CLS] A [SEP] B [SEP], or [CLS] A [SEP]."""
        return 2 if self.pairs == "none" else 3

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens that both segments can have together."""
        return self.sequence_length - self.special_tokens
