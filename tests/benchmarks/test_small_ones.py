"""The other benchmarks run at a tiny size and keep what a result must carry."""

from __future__ import annotations

import pytest

from tests.benchmarks.results import result_of

pytestmark = pytest.mark.slow


def test_fp8_and_bf16_start_from_the_same_loss(tmp_path, capsys) -> None:
    from benchmarks.fp8 import main

    runs = result_of(main, ["--steps", "3", "--rows", "2"], tmp_path)["runs"]
    bf16, fp8, other = (run["mlm_loss"] for run in runs.values())
    assert len(bf16) == 3
    assert bf16[0] == pytest.approx(fp8[0], rel=1e-3) != other[0]
    assert "held out" in capsys.readouterr().out


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
