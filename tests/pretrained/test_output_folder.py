"""Folders of exported models: what a killed process leaves is removed by the next."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bertds.errors import BertdsError
from bertds.pretrained.output_folder import fresh_folder
from bertds.system.atomic_files import atomic_path, os_error_of


def test_a_full_disk_is_named_whichever_library_writes(tmp_path: Path) -> None:
    """safetensors is in Rust, and raises an exception of its own."""
    with pytest.raises(SafetensorError) as caught:
        save_file({"a": torch.zeros(1)}, tmp_path / "missing" / "file")
    found = os_error_of(caught.value)
    assert found is not None and found.errno == errno.ENOENT
    out = tmp_path / "model"
    text = str(caught.value).replace("(os error 2)", f"(os error {errno.ENOSPC})")
    for writing in (fresh_folder, atomic_path):
        with pytest.raises(BertdsError, match=f"^{out}: the disk is full"), writing(out):
            raise SafetensorError(text)
    assert list(tmp_path.iterdir()) == []


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
