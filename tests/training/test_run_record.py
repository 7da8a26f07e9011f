"""What a run folder records about its start."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from bertds.training.launch import COMMAND
from bertds.training.run_folder import command_line


def test_the_recorded_command_can_be_copied_to_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report shows it under "How to reproduce"."""
    words = ["bertds/train.py", "--set", "run.dir=my runs/a", "data.path=it's"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delenv(COMMAND, raising=False)
    assert shlex.split(command_line()) == [Path(sys.executable).name, *words]
