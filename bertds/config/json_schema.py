"""Generates a JSON Schema of recipes from the dataclasses, for completion and checks in editors.

Put ``# yaml-language-server: $schema=recipe.schema.json`` on the first line of a recipe.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bertds.config.describe import default_of, is_numeric
from bertds.config.keys import all_keys
from bertds.config.ranges import SMALLEST, range_of
from bertds.config.recipe import Config

SIMPLE: dict[object, str] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    type(None): "null",
}


def json_schema(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema.

    Args:
        texts: dotted key -> its meaning.
    """
    hints = get_type_hints(Config)
    sections: dict[str, Any] = {
        name: {
            "type": ["object", "null"],
            "description": " ".join((kind.__doc__ or "").split()),
            "additionalProperties": False,
            "properties": {},
        }
        for name, kind in hints.items()
    }
    for key, kind in all_keys().items():
        section, name = key.split(".", 1)
        value = {"description": texts.get(key, ""), **_type(kind), "default": default_of(key)}
        if is_numeric(kind):
            allowed = range_of(key)
            low = 0 if allowed.or_zero else allowed.low
            value |= {"exclusiveMinimum": 0} if low == SMALLEST else {"minimum": low}
            if allowed.high < math.inf:
                value["maximum"] = allowed.high
        sections[section]["properties"][name] = value
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bertds recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": sections,
    }


def _type(kind: object) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) in (Union, types.UnionType):
        if any(get_origin(arm) is Literal for arm in get_args(kind)):
            return {"anyOf": [_type(arm) for arm in get_args(kind)]}
        return {"type": [SIMPLE[arm] for arm in get_args(kind)]}
    return {"type": SIMPLE[kind]}
