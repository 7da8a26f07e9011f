"""BERT's WordPiece as a pipeline of the package ``tokenizers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bertds.data.wordpiece_rules import WordPieceRules

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_WORD = 100
"""In characters; a longer word becomes [UNK], as in every BERT tokenizer."""


def wordpiece_pipeline(vocabulary: dict[str, int], rules: WordPieceRules | bool) -> Tokenizer:
    """Return the pipeline without added special tokens, so that "[MASK]" in a text stays text.

    Args:
        vocabulary: token -> id.
        rules: the normalization of text; a bool means BERT's own rules, uncased or cased.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    if isinstance(rules, bool):
        rules = WordPieceRules.of(rules)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=rules.lower_case,
        strip_accents=rules.strip_accents,
        handle_chinese_chars=rules.chinese_characters,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
