"""The benchmarks of stores run at a tiny size and keep what a result must carry."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.benchmarks.results import CARRIED, result_of

pytest.importorskip("aiohttp")


def test_the_interval_of_a_median_by_the_order_of_the_values() -> None:
    """Conover, Practical Nonparametric Statistics: 16 values, the 4th and the 13th."""
    from benchmarks.loader_commits import median_interval

    assert median_interval([float(n) for n in range(16, 0, -1)]) == (4.0, 13.0)
    assert median_interval([3.0, 1.0]) == (1.0, 3.0)


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


@pytest.mark.slow
def test_two_commits_of_the_loader_alternate(tmp_path: Path, repository: Path) -> None:
    if subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], check=False).returncode:
        pytest.skip("not in a clone")
    import json

    from benchmarks.loader_commits import main

    few = ["--before", "HEAD", "--processes", "1", "--pairs", "2", "--steps", "1"]
    assert main([*few, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) >= CARRIED
    low, high = result["interval_95"]
    assert 0 < low <= result["cpu_seconds_now_over_before"] <= high
