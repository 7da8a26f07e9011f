"""The other benchmarks run at a tiny size and keep what a result must carry."""

from __future__ import annotations

import pytest

from tests.benchmarks.results import result_of

pytestmark = pytest.mark.slow


def test_the_loaders_rates_and_stalls(tmp_path, capsys) -> None:
    from benchmarks.loader import main

    result = result_of(main, ["--seconds", "0.01", "--steps", "1"], tmp_path)
    assert set(result["stall_share"]) == {"1", "2", "4", "8"}
    for rates in result["rows_per_second"].values():
        assert rates["fresh masks"] > 10 * rates["transformers collator, pt"]
    assert "by data.prefetch_steps" in capsys.readouterr().out


def test_optimizers_are_timed_side_by_side(tmp_path) -> None:
    from benchmarks.optimizer import main

    sizes = result_of(main, ["--sizes", "tiny", "--repeats", "2"], tmp_path)["sizes"]
    assert sizes["tiny"]["torch AdamW fused"]["ratio"] == 1.0


def test_a_profile_has_each_part_and_the_longest_operators(tmp_path, capsys) -> None:
    from benchmarks.gpu_profile import main

    argv = ["--model", "tiny", "--length", "32", "--rows", "2", "--steps", "2"]
    result = result_of(main, argv, tmp_path)
    assert len(result["steps"]) == 2
    assert all(len(line["host_ms"]) == 3 and line["tokens"] > 0 for line in result["steps"])
    times = [kernel["ms"] for kernel in result["kernels"]]
    assert times == sorted(times, reverse=True) and sum(times) <= result["total_ms"]
    assert "forward" in capsys.readouterr().out
