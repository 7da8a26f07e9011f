from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertds.system.memory import cpu_memory_available, cpu_memory_total, resident_bytes
from bertds.system.processes import processor_time, start_time, usable_cores

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="compares with /proc")


@linux
def test_the_start_of_a_process_is_what_earlier_versions_wrote() -> None:
    """A lock of an earlier version, which read /proc, keeps its owner."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert start_time(os.getpid()) == fields[19]
    assert start_time(os.getpid()) == start_time(os.getpid())


def test_a_process_that_is_gone_has_no_start() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert int(start_time(process.pid)) >= int(start_time(os.getpid()))
    process.kill()
    deadline = time.monotonic() + 20
    while start_time(process.pid) and time.monotonic() < deadline:  # not reaped yet: a zombie
        time.sleep(0.01)
    assert start_time(process.pid) == ""
    process.communicate()
    assert start_time(process.pid) == "" and processor_time(process.pid) is None
    assert start_time(0) == start_time(-1) == start_time(2**40) == ""


def test_processor_time_grows_with_work() -> None:
    before = processor_time(os.getpid())
    assert before is not None
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = processor_time(os.getpid())
    assert after is not None and after - before >= 0.08


def test_memory_and_cores_are_those_of_the_machine() -> None:
    assert 0 < cpu_memory_available() <= cpu_memory_total()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert cpu_memory_total() == pytest.approx(pages, rel=0.01)
    assert 1_000_000 < resident_bytes() < cpu_memory_total()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
