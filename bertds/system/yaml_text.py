"""Reads foreign YAML safely: only plain values, and only as many as the text appears to contain.

With aliases, ten short lines can represent 10^10 values. They cost nothing until a program iterates
over the result or prints it. Therefore the values are counted before anything is built.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Maximum number of values with aliases written out; the largest NeMo configuration has 700."""


class _Counted:
    def get_single_node(self) -> yaml.Node | None:
        """Compose the document and count it."""
        node: yaml.Node | None = super().get_single_node()  # type: ignore[misc]
        if node is not None:
            _count(node, {})
        return node


class LimitedLoader(_Counted, yaml.SafeLoader):
    """SafeLoader that refuses documents that grow too large, or contain themselves, by aliases."""


class FastLoader(_Counted, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, if PyYAML has it: for tables that every worker reads at its start."""


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return the number of values that a node represents; shared ones are counted each time."""
    known = counted.get(id(node))
    if known is not None:
        if known < 0:
            raise yaml.YAMLError(f"{_place(node)}: an alias refers to a value that contains it")
        return known
    counted[id(node)] = -1  # in progress: if met again below itself, the node contains itself
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
        yaml.YAMLError: the text is not YAML, is nested too deeply, or grows too large.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" ({error.context})" if error.context else ""
        raise yaml.YAMLError(f"{place}{error.problem}{context}") from None
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date such as 2024-99-99, a huge number
        raise yaml.YAMLError(str(error)) from None
