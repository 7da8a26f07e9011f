"""The benchmarks of stores run at a tiny size and keep what a result must carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.results import result_of

pytest.importorskip("aiohttp")


@pytest.mark.slow
def test_waits_for_a_store_are_compared_with_the_local_folder(tmp_path: Path, capsys) -> None:
    from benchmarks.store_stall import main

    tiny = ["--shards", "3", "--block-rows", "40000", "--seconds", "2", "--rows-per-second"]
    result = result_of(main, [*tiny, "5000"], tmp_path)
    (row,) = result["needs"]
    assert 0 <= row["store"]["wait_share"] < 1 and 0 <= row["local"]["wait_share"] < 1
    assert 0 < row["cache_used_mb"] <= row["cache_bound_mb"]
    assert row["store"]["read_mb"] >= 0 and row["local"]["read_mb"] == 0
    assert "first batch" in capsys.readouterr().out
