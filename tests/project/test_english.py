"""Texts that people read keep to the words of ``docs/terms.md``; ``make check`` runs this."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.english import marks, ruled_out, texts

TEXTS = (
    "*.md",
    "docs/**/*.md",
    "docs/*.py",
    "bertds/**/*.py",
    "bertds/**/*.yaml",
    "bertds/display/templates/*",
    "data_prep/**/*.py",
    "data_prep/**/*.yaml",
    "benchmarks/*.py",
    "examples/*.py",
    "containers/*",
    "slurm/*",
    ".ci/*",
    "Makefile",
)


def files(repository: Path) -> list[Path]:
    found = {path for pattern in TEXTS for path in repository.glob(pattern) if path.is_file()}
    return sorted(found - {repository / "docs/terms.md"})


def copy_words(repository: Path, target: Path) -> None:
    (target / "docs").mkdir()
    shutil.copy(repository / "docs/terms.md", target / "docs")


def test_no_text_has_a_phrase_that_is_ruled_out(repository: Path) -> None:
    paths = files(repository)
    assert len(paths) > 400
    found = [str(mark) for path in paths for mark in marks(path, repository)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source", "phrase"),
    [
        ("page.md", "Save per so many steps.", "so many"),
        ("page.md", "- a list,\n- whose second\n  entry hangs\n  on this\n", "hangs on"),
        ("page.md", "| a | the run goes on |\n", "goes on"),
        ("help.py", 'add(help="number of rows a step (32)")\n', "rows a step"),
        ("help.py", 'add(help=f"so long the {count} processes wait")\n', "so long"),
        ("errors.py", 'raise ValueError(\n    "begin "\n    "anew"\n)\n', "anew"),
        ("logs.py", 'log.info("%s: removed by somebody", path)\n', "somebody"),
        ("field.py", 'class A:\n    keep: int = 2\n    """Nobody is told."""\n', "nobody"),
        ("doc.py", '"""Where the shards\nlie."""\n', "lie"),
        ("comment.py", "x = 1  # about a\n# sixth of all\n# a sixth\n", "a sixth"),
        ("recipe.yaml", "a: 1  # what stands here\n", "stands"),
        ("script.sh", "# the whole  road\n", "whole road"),
        ("page.html.j2", "<p>{{ a }} lies beside</p>\n", "lies"),
        ("help.py", 'add(help="mask 15 % of the tokens")\n', "5 %"),
    ],
)
def test_a_planted_phrase_is_found(
    repository: Path, tmp_path: Path, name: str, source: str, phrase: str
) -> None:
    copy_words(repository, tmp_path)
    (tmp_path / name).write_text(source)
    assert phrase in [mark.phrase for mark in marks(tmp_path / name, tmp_path)]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("page.md", "`so many`, and\n\n```text\nnobody\n```\n[that](stands/lies.md)\n"),
        ("code.py", 'told = {"beside": 1}\nprint(f"{told}: {beside} rows per step")\n'),
        ("code.py", '"""Find it.\n\n    Args:\n        beside: where ``nobody`` is.\n    """\n'),
        ("words.py", '"""A stand-in, understandable and believed."""\n'),
    ],
)
def test_code_and_names_are_left_alone(
    repository: Path, tmp_path: Path, name: str, source: str
) -> None:
    copy_words(repository, tmp_path)
    (tmp_path / name).write_text(source)
    assert marks(tmp_path / name, tmp_path) == []


def test_a_mark_has_the_line(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "a.py").write_text('x = 1\n\n\ndef f():\n    """One.\n\n    Anew.\n    """\n')
    pattern = ruled_out(repository)
    (text,) = (one for one in texts(tmp_path / "a.py") if one.kind == "docstring")
    hit = pattern.search(text.text)
    assert hit is not None and text.line + text.text.count("\n", 0, hit.start()) == 7


def test_a_spelling_error_is_found(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Recieve the seperate files.\n")
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(repository / "pyproject.toml")]
    done = subprocess.run([*command, str(page)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Recieve" in done.stdout and "seperate" in done.stdout
