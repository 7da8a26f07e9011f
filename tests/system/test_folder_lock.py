from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertds.errors import InUseError
from bertds.system.folder_lock import FolderLock


def test_only_one_of_many_processes_takes_a_stale_lock(tmp_path: Path, repository: Path) -> None:
    """All see the dead owner at the same moment; none may remove the lock of the winner."""
    code = """
import json, os, sys, time
from pathlib import Path
from bertds.errors import InUseError
from bertds.system.fault_points import inject
from bertds.system.folder_lock import FolderLock
out = Path(sys.argv[1])
for turn in range(15):
    folder = out / str(turn)
    folder.mkdir()
    (folder / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1"}))
    os.utime(folder / ".lock", (1, 1))
    begin = time.monotonic() + 0.02
    children = []
    for index in range(6):
        child = os.fork()
        if child == 0:
            while time.monotonic() < begin:
                pass
            # Some are slow between their last look at the lock and its removal.
            inject("lock.remove", lambda: time.sleep((index + turn) % 3 * 0.04))
            try:
                lock = FolderLock(folder, "p").acquire()
                (folder / f"taken-{index}").touch()
                while len(list(folder.glob("[tr]*-*"))) < 6:
                    time.sleep(0.01)
            except InUseError:
                (folder / f"refused-{index}").touch()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert len(list(folder.glob("taken-*"))) == 1, (turn, sorted(folder.iterdir()))
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


def test_a_lock_that_was_taken_since_the_check_is_put_back(tmp_path: Path) -> None:
    stale = tmp_path / ".lock"
    stale.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(stale, (1, 1))
    winners: list[FolderLock] = []

    class Late(FolderLock):
        def _living_owner(self) -> str | None:
            found = super()._living_owner()
            if not winners:  # between the look and the removal another one takes it
                assert found is None
                winners.append(FolderLock(tmp_path, "winner").acquire())
            return found

    with pytest.raises(InUseError, match="in use by winner"):
        Late(tmp_path, "late").acquire()
    winners[0].check()
    winners[0].release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"pid": 1}'])
def test_a_lock_that_names_no_owner_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    os.utime(tmp_path / ".lock", (1, 1))
    with FolderLock(tmp_path, "mine"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
