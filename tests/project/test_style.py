"""The formatter decides how code is laid out; each package has a guide."""

from __future__ import annotations

import ast
import re
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


def test_each_package_has_a_guide_that_names_existing_files(repository: Path) -> None:
    """README promises what a package is for, and which file to read first."""
    wrong = []
    for root in (repository / "bertds", repository / "data_prep"):
        for path in sorted(root.rglob("__init__.py")):
            package, name = path.parent, str(path.parent.relative_to(repository))
            text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            if "Read first: ``" not in text and name not in ("bertds", "bertds/recipes"):
                wrong.append(f"{name}: no file to read first")
            for file in re.findall(r"``([\w/]+\.py)``", text):
                places = (repository / file, package.parent / file, *package.rglob(file))
                if not any(place.is_file() for place in places):
                    wrong.append(f"{name}: {file} does not exist")
    assert wrong == []
