from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bertds.errors import BertdsError, ConfigError, InUseError
from bertds.system.atomic_files import (
    append_line,
    atomic_path,
    check_file_place,
    sha256_file,
    temporary_name,
    write_json,
    write_text,
)
from bertds.system.folder_lock import FolderLock
from bertds.system.logs import log, log_to_file
from bertds.system.run_command import guarded
from bertds.training.sample_log import SampleLog
from tests.support.disk_order import DiskOrder


def test_a_failed_write_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ValueError, match="boom"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ValueError("boom")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, disk = tmp_path / "a.txt", DiskOrder(monkeypatch)
    write_text(target, "new")
    assert disk.events == [
        ("flush", temporary_name(target)),
        ("rename", target),
        ("flush", tmp_path),
    ]
    disk.events.clear()
    write_text(target, "a working file", durable=False)
    assert disk.events == [("rename", target)]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    import errno

    with (
        pytest.raises(BertdsError, match=r"a.txt: the disk is full"),
        atomic_path(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_sha256sum(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    assert sha256_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_is_refused_while_its_owner_lives(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom bertds.system.folder_lock import FolderLock\n"
        f"FolderLock(Path({str(tmp_path)!r}), 'a test').acquire()\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": "1234"},
    )
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=rf"in use by a test \(process {owner.pid} .*job 1234"):
        FolderLock(tmp_path, "mine").acquire()
    owner.kill()
    owner.wait()
    with FolderLock(tmp_path, "mine"):  # the owner is dead: taken over
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_taking_a_lock_removes_the_leftovers_of_killed_processes(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, old, new = (
        tmp_path / f".tmp-{name}"
        for name in (f"lock.{host}.{dead.pid}", "dead-lock.a.b.7", "lock.elsewhere.7")
    )
    living = tmp_path / f".tmp-lock.{host}.{os.getppid()}"
    for path in (here, old, new, living):
        path.write_text("{")
    os.utime(old, (1, 1))
    with FolderLock(tmp_path, "mine"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([new, living])


def test_a_lock_of_another_host_is_taken_over_only_when_stale(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    write_json(lock, {"host": "elsewhere", "pid": 1, "start": "1", "purpose": "p", "job": ""})
    with pytest.raises(InUseError, match="on elsewhere"):
        FolderLock(tmp_path, "mine").acquire()
    os.utime(lock, (1, 1))
    FolderLock(tmp_path, "mine").acquire().release()


def test_an_owner_that_was_considered_dead_notices_its_loss(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "mine").acquire()
    lock.check()
    theirs = {"host": "elsewhere", "pid": 1, "purpose": "p", "job": "77"}
    write_json(tmp_path / ".lock", theirs)
    lock.check(at_most_every=60)  # looked a moment ago
    with pytest.raises(InUseError, match=r"on elsewhere, Slurm job 77\).* stops without saving"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / ".lock").read_text()) == theirs  # not ours to remove

    (tmp_path / ".lock").unlink()
    lock.acquire()
    (tmp_path / ".lock").unlink()
    with pytest.raises(InUseError, match="removed by another process"):
        lock.check()


def test_a_held_lock_stays_fresh_for_other_hosts(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "mine", stale_seconds=0.5):
        os.utime(tmp_path / ".lock", (1, 1))
        deadline = time.monotonic() + 10
        while time.time() - (tmp_path / ".lock").stat().st_mtime > 60:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_line_that_finds_no_room_names_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_line(tmp_path / "lines", "one")
    append_line(tmp_path / "lines", "two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
    with pytest.raises(BertdsError, match="/dev/full: the disk is full; free some space"):
        append_line(Path("/dev/full"), "three")
    samples = SampleLog(tmp_path, 0, 0)
    (tmp_path / "samples_rank_00000.jsonl").symlink_to("/dev/full")
    with pytest.raises(BertdsError, match=r"samples_rank_00000\.jsonl: the disk is full"):
        samples.write(1, np.zeros((2, 2)))
    # The log's own lines are lost in silence: no traceback over the one line that matters.
    handler = log_to_file(Path("/dev/full"))
    try:
        log.error("no room for this")
    finally:
        log.removeHandler(handler)
        handler.close()
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_where_a_folder_is_needed_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ConfigError, match=r"file/a: cannot be used here \(Not a directory\)"):
        write_text(file / "a", "text")
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        check_file_place(tmp_path)
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_file_place(file / "a")
    check_file_place(tmp_path / "new")
    # Whatever did not check first ends in one line, too.
    assert guarded(lambda _: file.mkdir(), []) == 2  # type: ignore[arg-type,func-returns-value]
    assert capsys.readouterr().err == f"bertds: error: {file}: cannot be used here (File exists)\n"
    assert file.read_text() == "kept"
