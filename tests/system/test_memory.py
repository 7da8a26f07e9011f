"""The free memory of a process within control groups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bertds.system.memory import _control_groups, _room


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_pages_of_files_can_be_dropped(tmp_path: Path) -> None:
    """A container that has read a corpus is not full."""
    stat = "anon 300\nactive_file 200\ninactive_file 400\nshmem 50"
    write(tmp_path, memory__max="1000", memory__current="950", memory__stat=stat)
    assert _room(tmp_path) == 650.0
    write(tmp_path, memory__max="max")
    assert _room(tmp_path) == math.inf


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    stat = "cache 1\ntotal_active_file 100\ntotal_inactive_file 100"
    write(tmp_path, memory__limit_in_bytes="1000", memory__usage_in_bytes="800", memory__stat=stat)
    assert _room(tmp_path) == 400.0


def test_no_limit_where_there_is_none(tmp_path: Path) -> None:
    assert _room(tmp_path) == math.inf
    write(tmp_path, memory__max="1000", memory__current="odd", memory__stat="")
    assert _room(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/slurm/job_7/step_0\n", "/sys/fs/cgroup/slurm/job_7/step_0"),
        ("9:cpu:/x\n4:memory:/slurm/job_7\n", "/sys/fs/cgroup/memory/slurm/job_7"),
    ],
)
def test_the_limits_of_a_jobs_group_and_those_above_count(
    tmp_path: Path, text: str, group: str
) -> None:
    groups = _control_groups(write(tmp_path, cgroup=text) / "cgroup")
    assert Path(group) in groups and Path(group).parent in groups
    assert Path("/sys/fs/cgroup") in groups and Path("/sys/fs") not in groups
    assert _control_groups(tmp_path / "missing") == [Path("/sys/fs/cgroup")]
