"""The process that ends a rank in which Python no longer runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from bertds.distributed.watchdog import Watchdog
from tests.support.ranks import REPOSITORY

RANK = """
import re, sys, time
from bertds.distributed.watchdog import Watchdog
dog = Watchdog(3).start()
dog.alive(60.0)
dog.{act}(1.0)
print("ready", flush=True)
{then}
"""


def start(act: str, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK.format(act=act, then=then)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("act", "then", "said"),
    [
        (
            "alive",
            're.match(r"(a?){40}a{40}", "a" * 40)',
            "is hung: it has not run any Python code",
        ),
        ("leaving", "while True: dog.alive(60.0); time.sleep(0.1)", "did not exit within 1 s"),
    ],
)
def test_a_process_that_does_not_end_is_killed(act: str, then: str, said: str) -> None:
    process = start(act, then)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert f"bertds: rank 3 (process {process.pid}) {said}" in errors


def test_a_process_that_is_suspended_or_reports_is_left_alone() -> None:
    process = start("alive", "time.sleep(1.0); dog.alive(1.0); sys.stdin.read()")
    try:
        process.send_signal(signal.SIGSTOP)  # a suspended job is not hung
        time.sleep(2.5)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_it_ends_with_the_rank_and_on_request() -> None:
    dog = Watchdog(0).start()
    process = dog._process
    assert process is not None and process.poll() is None
    dog.stop()
    assert process.returncode == 0
    dog.alive(1.0)  # nobody listens: nothing happens
