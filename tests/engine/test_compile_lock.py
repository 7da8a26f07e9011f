"""The lock file under which torch compiles DeepSpeed's operators."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from bertds.engine.compile_lock import compiling, release


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "operator").mkdir()
    return tmp_path / "operator" / "lock"


def test_the_lock_of_a_killed_process_is_removed(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock.touch()
    os.utime(lock, (1, 1))
    with caplog.at_level(logging.WARNING), compiling("operator"):
        assert not lock.exists()
    assert f"{lock}: removed" in caplog.text


def test_another_process_is_waited_for_with_a_message(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock.touch()
    threading.Timer(0.3, lock.unlink).start()
    with caplog.at_level(logging.WARNING), compiling("operator"):
        assert not lock.exists()
    assert f"at most 30 min; if none does, remove {lock}" in caplog.text


def test_a_process_releases_only_its_own_lock(lock: Path) -> None:
    lock.touch()
    release(lock)
    assert lock.exists()  # of another process
    lock.unlink()
    assert FileBaton(str(lock)).try_acquire()
    release(lock)
    assert not lock.exists()
