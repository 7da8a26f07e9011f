"""The place of a process among the ranks."""

from __future__ import annotations

from bertds.distributed.rank_info import find_rank_info


def test_without_a_launcher_the_process_is_alone() -> None:
    assert find_rank_info({}).world_size == 1
