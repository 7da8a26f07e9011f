from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_notebook_has_the_code_of_the_tutorial(repository: Path) -> None:
    sys.path.insert(0, str(repository / "examples"))
    try:
        from make_notebook import notebook
    finally:
        sys.path.pop(0)
    page = (repository / "docs" / "tutorial.md").read_text(encoding="utf-8")
    stored = json.loads((repository / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert stored == notebook(page), "run: python examples/make_notebook.py"
    kinds = [cell["cell_type"] for cell in stored["cells"]]
    assert kinds.count("code") == 4 and len({cell["id"] for cell in stored["cells"]}) == len(kinds)


@pytest.mark.slow
def test_the_notebook_runs(repository: Path, tiny_text: Path, tmp_path: Path) -> None:
    """Its code, cell after cell in one namespace; fewer steps."""
    stored = json.loads((repository / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in stored["cells"] if c["cell_type"] == "code"]
    code = "\n".join(cells)
    small = code.replace('"schedule.total_steps": 200', '"schedule.total_steps": 3')
    assert small != code
    (tmp_path / "corpus.txt").write_bytes(tiny_text.read_bytes())
    (tmp_path / "cells.py").write_text(small)
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "3 validation" in done.stdout and "bert-base-uncased" in done.stdout


@pytest.mark.slow
def test_the_own_loop_learns(repository: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, repository / "examples/own_loop.py", tiny_data, tmp_path / "m", "40"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if "loss" in line]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05  # near the words' frequencies, which come first
    assert (tmp_path / "m" / "model.safetensors").is_file()
    code = (repository / "examples/own_loop.py").read_text().split("def main")[1].splitlines()
    assert len(code) <= 40
