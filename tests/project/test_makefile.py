"""``make run`` on systems where training does not run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bertds.errors import ConfigError
from bertds.system.processes import require_linux


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_macos_is_refused_before_anything_is_installed(repository: Path, tmp_path: Path) -> None:
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\necho Darwin\n")
    uname.chmod(0o755)
    answer = subprocess.run(
        ["make", "run", f"VENV={tmp_path / 'venv'}", f"WORK={tmp_path / 'demo'}"],
        cwd=repository,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("training needs Linux, this is Darwin; use a Linux container")
    assert not (tmp_path / "venv").exists() and not (tmp_path / "demo").exists()


def test_training_elsewhere_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    require_linux()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="training needs Linux, this is macOS; use a Linux"):
        require_linux()
