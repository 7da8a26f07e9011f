"""Folders of exported models: what a killed process leaves is removed by the next."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from bertds.pretrained.output_folder import fresh_folder


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_kept(
    tmp_path: Path,
) -> None:
    host, dead = socket.gethostname(), 2**22 + 1  # above the kernel's largest process number
    names = [
        f".tmp-model.{host}.{dead}",
        f".tmp-old-model.{host}.{dead}",
        f".tmp-model.{host}.{os.getppid()}",
        f".tmp-model.elsewhere.{dead}",
        f".tmp-model2.{host}.{dead}",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    with fresh_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], "model"])
