"""YAML of others, read safely: plain values only, and no more of them than the text seems to hold.

Aliases let ten short lines represent 10^10 values: each is free until a program walks over the
result or prints it. So they are counted before anything is built.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Values of a document with its aliases written out; the largest NeMo configuration has 700."""


class LimitedLoader(yaml.SafeLoader):
    """SafeLoader that refuses what grows to very much, or contains itself, through aliases."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document and count it."""
        node: yaml.Node | None = super().get_single_node()  # type: ignore[no-untyped-call]
        if node is not None:
            _count(node, {})
        return node


class FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, where PyYAML has it: for tables that every worker reads as it starts."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document and count it."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return how many values a node represents, shared ones counted each time."""
    known = counted.get(id(node))
    if known is not None:
        if known < 0:
            raise yaml.YAMLError(f"{_place(node)}: an alias refers to a value that contains it")
        return known
    counted[id(node)] = -1  # under way: met again below itself, it is a part of itself
    total = 1
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
    for part in parts:
        total += _count(part, counted)
        if total > MAX_VALUES:
            raise yaml.YAMLError(
                f"{_place(node)}: more than {MAX_VALUES:,} values with its aliases written out"
            )
    counted[id(node)] = total
    return total


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def load_yaml(text: str | bytes, loader: type[LimitedLoader | FastLoader] = LimitedLoader) -> Any:
    """Read a YAML document.

    Raises:
        yaml.YAMLError: it is none, is nested too deeply, or grows too large.
    """
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date such as 2024-99-99, a huge number
        raise yaml.YAMLError(str(error)) from None
