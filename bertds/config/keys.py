"""The dotted keys of recipes, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from keyword import iskeyword
from typing import Any, get_type_hints

from bertds.config.recipe import Config


def key_of(name: str) -> str:
    """Return the YAML key of a field name (``from_`` is ``from``)."""
    return name.rstrip("_")


def field_of(key: str) -> str:
    """Return the field name of a YAML key: the inverse of :func:`key_of`."""
    return f"{key}_" if iskeyword(key) else key


def all_keys() -> dict[str, Any]:
    """Return every dotted key with its declared type, in the order of declaration."""
    keys: dict[str, Any] = {}
    for section in fields(Config):
        section_type = get_type_hints(Config)[section.name]
        hints = get_type_hints(section_type)
        for item in fields(section_type):
            keys[f"{section.name}.{key_of(item.name)}"] = hints[item.name]
    return keys


def dotted(
    values: Mapping[str, Any], prefix: str = "", *, keep_empty: bool = False
) -> dict[str, Any]:
    """Return nested values by their dotted keys, each with the prefix.

    Args:
        values: nested mappings.
        prefix: prefix of all keys, such as ``deepspeed.``.
        keep_empty: an empty mapping counts as a value and is not omitted.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and (value or not keep_empty):
            flat |= dotted(value, f"{prefix}{key}.", keep_empty=keep_empty)
        else:
            flat[f"{prefix}{key}"] = value
    return flat
