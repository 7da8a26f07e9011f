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
