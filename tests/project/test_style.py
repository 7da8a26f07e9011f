"""The formatter decides how code is laid out."""

from __future__ import annotations

from pathlib import Path

OVERRULED = ("# fmt: " + "skip", "# fmt: " + "off")


def test_the_formatter_is_never_disabled(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for folder in ("benchmarks", "bertds", "data_prep", "examples", "tests")
        for path in sorted((repository / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if any(comment in line for comment in OVERRULED)
    ]
    assert found == []
