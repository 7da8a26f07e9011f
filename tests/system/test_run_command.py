"""Commands in odd environments: closed streams, pipes whose reader has ended, a full disk."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bertds.system.run_command import guarded
from tests.support.ranks import REPOSITORY

FULL = Path("/dev/full")


def run(shell: str, folder: Path = REPOSITORY, *more: object) -> subprocess.CompletedProcess[str]:
    """Run ``bertds`` as ``$B`` in a shell; the exit code is that of the first command of a pipe."""
    command = f'"{sys.executable}" -m bertds'
    script = f'B() {{ {command} "$@"; }}; {shell}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, more)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", ["--help", "--version", "prep --help", "recipes list"])
def test_a_reader_that_ends_early_is_no_error(arguments: str) -> None:
    found = run(f"B {arguments} | true")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    found = run(f"B --version > {FULL}")
    assert (found.returncode, found.stderr) == (
        1,
        "bertds: error: the disk of the output or of a temporary file is full\n",
    )


def test_ctrl_c_ends_a_command_without_taking_down_its_modules() -> None:
    """Taking down torch takes seconds."""
    program = """
import atexit, sys, threading, types
from bertds import cli

class Slow:
    def __del__(self):
        print("taken down")

def main(argv):
    threading.Timer(0.2, print, ["thread done"]).start()
    raise KeyboardInterrupt

slow = Slow()
atexit.register(print, "atexit done")
sys.modules["stub"] = types.SimpleNamespace(main=main)
cli.COMMANDS["models"] = ("stub", "")
cli.main()
"""
    found = subprocess.run(
        [sys.executable, "-c", program, "models"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.returncode, found.stderr) == (130, "")
    assert found.stdout == "thread done\natexit done\n"


def test_closed_streams_are_replaced() -> None:
    assert run("B prep --help 0<&- 1>&- 2>&-").returncode == 0
    found = run("B prep --text nowhere --out x --vocab y 0<&- 1>&- 2>&-")
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "")


def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    found = run('rmdir "$1"; B recipes list', tmp_path, tmp_path)
    assert found.returncode == 2
    assert found.stderr == (
        "bertds: error: the current folder cannot be used (No such file or directory); change to "
        "another one\n"
    )


def test_what_may_not_be_accessed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is read or written is not known here."""

    def main(_: list[str]) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/manifest.json")

    assert guarded(main, []) == 2
    assert capsys.readouterr().err == (
        "bertds: error: /data/manifest.json: cannot be accessed (Permission denied)\n"
    )


def _numpy() -> None:
    np.empty(2**60, np.uint8)


def _torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def _python() -> None:
    raise MemoryError


@pytest.mark.parametrize("allocate", [_numpy, _torch, _python])
def test_memory_that_cannot_be_allocated_is_no_unexpected_error(
    allocate: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        allocate()
        return 0

    assert guarded(main, []) == 1
    assert capsys.readouterr().err.startswith("bertds: error: out of memory (")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Resource temporarily unavailable")])
def test_a_limit_of_the_address_space_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        raise error

    note = "limited to 2 GiB: try again after `ulimit -v unlimited`"
    for limit in (2**31, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert guarded(main, []) == 1
        assert (note in capsys.readouterr().err) == (limit == 2**31)


def test_the_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[tuple[int, int]] = []

    def main(_: list[str]) -> int:
        found.append(resource.getrlimit(resource.RLIMIT_NOFILE))
        return 0

    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        assert guarded(main, []) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == [(before[1], before[1])]


def test_too_many_open_files_name_the_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert guarded(main, []) == 1
    assert "error: too many open files; the limit of this process is 1,024" in (
        capsys.readouterr().err
    )
