"""Describes a key in words: its meaning, its type and its default."""

from __future__ import annotations

import ast
import inspect
import types
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Literal, Union, get_args, get_origin, get_type_hints

from bertds.config import recipe, run_settings
from bertds.config.keys import key_of
from bertds.config.recipe import Config


def default_of(key: str) -> object:
    """Return the default value of a dotted key."""
    section, name = key.split(".", 1)
    section_type = get_type_hints(Config)[section]
    return {key_of(item.name): item.default for item in fields(section_type)}[name]


def describe_type(kind: object) -> str:
    """Return a declared type in words, such as ``one of gelu, gelu_new`` or ``number or null``."""
    if get_origin(kind) is Literal:
        choices = ", ".join(str(choice) for choice in get_args(kind))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe_type(arm) for arm in get_args(kind))
    names: dict[object, str] = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    return "null" if kind is type(None) else names[kind]


def is_numeric(kind: object) -> bool:
    """Return whether a declared type is a number, or a number or null."""
    return any(arm in (int, float) for arm in (kind, *get_args(kind)))


def texts_under_fields(declared: ast.ClassDef) -> dict[str, str]:
    """Return field -> the docstring that follows it in the source of a class."""
    return {
        item.target.id: " ".join(str(text.value.value).split())
        for item, text in pairwise(declared.body)
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


@cache
def field_docs() -> dict[str, str]:
    """Return dotted key -> the docstring under the field in the source of the recipe classes."""
    classes = [
        node
        for module in (recipe, run_settings)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
    ]
    # Class of a section -> its name in recipes, from the fields of Config.
    sections = {
        item.annotation.id: item.target.id
        for node in classes
        if node.name == "Config"
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.annotation, ast.Name)
        and isinstance(item.target, ast.Name)
    }
    return {
        f"{sections[node.name]}.{key_of(name)}": text
        for node in classes
        if node.name in sections
        for name, text in texts_under_fields(node).items()
    }
