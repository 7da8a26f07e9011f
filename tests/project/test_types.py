"""Values keep their types where one module hands them to another."""

from __future__ import annotations

import re
from pathlib import Path

# A parameter, result or attribute of unknown type: mypy checks nothing that is done with it.
UNTYPED = re.compile(r"(: |-> )Any\b")
MOST = 39


def untyped_lines(repository: Path) -> list[str]:
    return [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for package in ("bertds", "data_prep")
        for path in sorted((repository / package).rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if UNTYPED.search(line)
    ]


def test_few_values_are_untyped(repository: Path) -> None:
    """What reads JSON or YAML, and torch's autograd contexts; others have a type or a protocol."""
    found = untyped_lines(repository)
    assert 0 < len(found) <= MOST, "\n".join(found)
