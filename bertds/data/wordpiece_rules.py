"""The rules of BERT's tokenizer for text, before word pieces are looked up."""

from __future__ import annotations

from typing import Any, NamedTuple


class WordPieceRules(NamedTuple):
    """What BERT's tokenizer does to text before it looks up word pieces."""

    lower_case: bool
    strip_accents: bool
    chinese_characters: bool = True
    """Whether each ideograph is a separate word."""

    @staticmethod
    def of(
        lower_case: bool, strip_accents: bool | None = None, chinese_characters: bool | None = None
    ) -> WordPieceRules:
        """Return the rules; None = BERT's default: accents are stripped if text is lower-cased."""
        strip = lower_case if strip_accents is None else strip_accents
        return WordPieceRules(lower_case, strip, chinese_characters is not False)

    @property
    def casing(self) -> str:
        """Return the rules in words; ``uncased`` and ``cased`` are BERT's two."""
        words = ["uncased" if self.lower_case else "cased"]
        if self.strip_accents != self.lower_case:
            words.append("accents stripped" if self.strip_accents else "accents kept")
        if not self.chinese_characters:
            words.append("ideographs not divided")
        return ", ".join(words)

    def to_transformers(self, length: int) -> dict[str, Any]:
        """Return the contents of a ``tokenizer_config.json`` with these rules.

        Args:
            length: maximum number of tokens of a row.
        """
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lower_case,
            # None is BERT's default: accents are stripped if text is lower-cased.
            "strip_accents": None if self.strip_accents == self.lower_case else self.strip_accents,
            "tokenize_chinese_chars": self.chinese_characters,
            "model_max_length": length,
        }
