from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.soak.kill import soak
from tests.support.fork_server import ForkServer


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_equals_an_uninterrupted_one(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The short form of soak/kill.py: every kind of round, on one and two ranks."""
    tally = soak(fork_server, command, tmp_path, kills=8, seed=5, lives=2)
    assert sum(tally.kills.values()) == 8 and tally.rounds >= 4
    assert tally.slowest_survivor < 30
