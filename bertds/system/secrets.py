"""Keeps credentials out of messages, logs and records.

A presigned URL has its signature in the query, and some URLs have a password before the host.
"""

from __future__ import annotations

import re

_HIDDEN = "***"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*://)([^\s'\"<>`]+)")
_PASSWORD = re.compile(r"^[^/@]*:[^/@]*@")
# Fields in which stores sign a request or name a key, in any kind of quotation.
_FIELD = re.compile(
    r"(?i)\b((?:x-amz|x-goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig"
    r"|(?:aws_)?secret_?access_?key|(?:aws_)?access_?key(?:_?id)?|(?:aws_)?session_?token"
    r"|account_?key|sas_?token|connection_?string|password|authorization|secret"
    # "no pad token: [PAD]" is about text, unless a long word with a digit follows.
    r"|(?:hf_)?token(?!(?<=[a-z] token): (?!(?=\S*\d)[\w.~+/-]{20})))"
    r"(['\"]?\s*[=:]\s*['\"]?)((?:bearer\s+|basic\s+)?[^\s'\"&,;)}\]]{6,})"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\bhf_[A-Za-z0-9]{20,}\b")


def _masked_url(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    rest = _PASSWORD.sub(f"{_HIDDEN}@", rest)
    place, question, _ = rest.partition("?")
    # A lone `?` ends a sentence or is part of a pattern; a query contains `=`.
    return f"{scheme}{place}?{_HIDDEN}" if question and "=" in rest else f"{scheme}{rest}"


def without_secrets(values: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the sections of a recipe with their texts masked, ready to be recorded."""
    return {
        section: {
            key: masked(value) if isinstance(value, str) and "://" in value else value
            for key, value in settings.items()
        }
        for section, settings in values.items()
    }


def masked(text: object) -> str:
    """Return a text without keys, and without the queries and passwords of its URLs."""
    shown = str(text)
    if "://" in shown:
        shown = _URL.sub(_masked_url, shown)
    shown = _FIELD.sub(rf"\1\2{_HIDDEN}", shown)
    return _KEY_ID.sub(_HIDDEN, shown)
