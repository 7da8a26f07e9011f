"""A process's own memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bertds.system.memory import OwnMemory


def test_own_memory_excludes_the_pages_of_files(tmp_path: Path) -> None:
    """As on a busy machine: 200 MiB of files' pages are dropped between two looks."""

    def status(most: int, own: int, files: int) -> int:
        text = f"VmHWM: {most} kB\nRssAnon: {own} kB\nRssFile: {files} kB\nRssShmem: 0 kB\n"
        (tmp_path / "status").write_text(text)
        return memory.look() // 1024

    memory = OwnMemory(tmp_path)
    assert status(700, 400, 200) == 500
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert status(660, 400, 10) == 500  # 460 before they went, or 650 after: 500 is sure
    assert status(640, 400, 10) == 630
    assert OwnMemory(tmp_path / "none").look() > 1_000_000  # elsewhere: what the system counts


def test_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    """A program of 600 MB starts a small one, as a pipeline or a notebook starts a run."""
    inner = "from bertds.system.memory import peak_memory_gib; print(peak_memory_gib())"
    outer = (
        "import subprocess, sys; held = bytearray(600_000_000); "
        f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    )
    found = subprocess.run([sys.executable, "-c", outer], capture_output=True, check=True)
    assert 0.002 < float(found.stdout) < 0.4
