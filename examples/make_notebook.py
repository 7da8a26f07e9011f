"""Writes examples/notebook.ipynb from the section of docs/tutorial.md that is in Python.

python examples/make_notebook.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTION = "in Python"


def notebook(page: str) -> dict[str, Any]:
    """Return the notebook (nbformat 4.5): text as Markdown cells, each Python block as a cell."""
    section = next(
        s for s in re.split(r"^## ", page, flags=re.M)[1:] if SECTION in s.split("\n")[0]
    )
    title, text = section.split("\n", 1)
    cells: list[dict[str, Any]] = [_cell("markdown", f"# bertds: {title.partition('. ')[2]}")]
    for number, part in enumerate(re.split(r"```(?:python)?\n", text)):
        if part.strip():
            cells.append(_cell("code" if number % 2 else "markdown", part.strip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": kind,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    made = notebook((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    target = ROOT / "examples" / "notebook.ipynb"
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {target}")
