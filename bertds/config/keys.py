"""The dotted keys of recipes, as users write them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from bertds.config.recipe import Config


def key_of(name: str) -> str:
    """Return the YAML key of a field name (``from_`` is ``from``)."""
    return name.rstrip("_")


def all_keys() -> dict[str, Any]:
    """Return every dotted key with its declared type, in the order of declaration."""
    keys: dict[str, Any] = {}
    for section in fields(Config):
        section_type = get_type_hints(Config)[section.name]
        hints = get_type_hints(section_type)
        for item in fields(section_type):
            keys[f"{section.name}.{key_of(item.name)}"] = hints[item.name]
    return keys
