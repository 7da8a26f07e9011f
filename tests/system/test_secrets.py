"""Credentials are masked; words about tokens of text are not."""

from __future__ import annotations

import pytest

from bertds.system.secrets import masked


@pytest.mark.parametrize(
    "text",
    [
        "hf_token=abcdefghij",
        "'token': 'abcdefgh'",
        "?token=abcdefgh",
        "with token=abcdefgh",
        "token: abcdefgh",
        "the token: abcdefghij0123456789xyz",
        "session_token: abcdefgh",
        "Authorization: Bearer abcdefgh",
    ],
)
def test_a_credential_is_masked(text: str) -> None:
    assert "abcdefgh" not in masked(text) and "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "x.json: no pad token: tokenizer_config.json names none",
        "no mask token: [MASK], <mask>",
        "the longest token: 'supercalifragilistic'",
    ],
)
def test_a_token_of_text_is_shown(text: str) -> None:
    assert masked(text) == text
