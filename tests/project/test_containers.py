"""The image definitions copy what the package needs, pin what they start from, and agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.lab import cannot_run


@pytest.fixture
def dockerfile(repository: Path) -> list[list[str]]:
    """Its instructions, continuation lines joined."""
    text = (repository / "containers/Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def definition(repository: Path) -> dict[str, list[str]]:
    """The sections of the Apptainer definition; its header under ""."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (repository / "containers/bertds.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:]
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def needed(repository: Path) -> set[str]:
    """What a build of the wheel reads: as setup.py and pyproject.toml name it."""
    text = (repository / "pyproject.toml").read_text()
    named = re.findall(r'^(?:readme = |license-files = \[)"([\w.]+)"', text, re.MULTILINE)
    return {"pyproject.toml", "setup.py", "bertds", "data_prep", "ds_configs", *named}


def test_the_dockerfile_holds_together(repository: Path, dockerfile: list[list[str]]) -> None:
    words = [line[0] for line in dockerfile]
    assert words[0] == "FROM" and re.fullmatch(r"python:3\.\d+-slim-\w+", dockerfile[0][1])
    assert set(words) <= {"FROM", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    copied = {source for line in dockerfile if line[0] == "COPY" for source in line[1:-1]}
    assert copied == needed(repository) | {"constraints.txt"}
    assert all((repository / source).exists() for source in copied)
    assert [line[1] for line in dockerfile if line[0] == "USER"] == ["1000"]
    assert words.index("USER") > max(n for n, word in enumerate(words) if word == "RUN")
    assert dockerfile[words.index("ENTRYPOINT")][1] == '["bertds"]'
    for line in dockerfile:
        command = " ".join(line)
        if "apt-get install" in command:
            assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists" in command
        if "pip install" in command:
            assert "--no-cache-dir" in command and "constraints.txt" in command


def test_the_apptainer_definition_is_the_same_image(
    repository: Path, dockerfile: list[list[str]], definition: dict[str, list[str]]
) -> None:
    header = dict(line.split(": ") for line in definition[""])
    assert header == {"Bootstrap": "docker", "From": dockerfile[0][1]}
    assert {line.split()[0] for line in definition["files"]} == needed(repository) | {
        "constraints.txt"
    }
    assert 'exec bertds "$@"' in definition["runscript"] and definition["post"][0] == "set -e"
    installed = [re.search(r"pip install .*?\"", " ".join(line)) for line in dockerfile]
    (pip,) = [match.group() for match in installed if match]
    assert any(line.startswith(pip) for line in definition["post"])


def test_hadolint_finds_nothing(repository: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        cannot_run("hadolint is not installed")
    # DL3008, DL3013: apt's g++ and this clone have no versions to pin.
    command = [program, "--ignore", "DL3008", "--ignore", "DL3013", "containers/Dockerfile"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
