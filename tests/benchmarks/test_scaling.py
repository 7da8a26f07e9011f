"""What ranks say to each other in a step: counted at the calls, held against the plan's model."""

from __future__ import annotations

import pytest

from benchmarks.collectives import CALLS
from benchmarks.scaling import main, predicted_bytes, run_ranks, shape_of
from bertds.cost_model.flops import parameter_count

pytestmark = pytest.mark.slow

JOB = {"data": "", "model": "tiny", "processes": 2, "rows": 2, "steps": 1, "matrix_seconds": 0.05}


def counted(stage: int, accumulation: int, **values) -> dict:
    return run_ranks({**JOB, "stage": stage, "accumulation": accumulation, "values": values})


def test_accumulation_sends_nothing_and_the_volume_matches_the_plan() -> None:
    one, four = counted(1, 1), counted(1, 4)
    assert one["calls_per_step"] == four["calls_per_step"]
    assert one["payload_bytes"] == four["payload_bytes"]
    assert four["calls_per_step"]["all_reduce"] <= 3  # gradients; norm, overflow
    numbers = parameter_count(shape_of("tiny", 1, 2, "fp32", True).model, 30_522)
    for vector in ("all_reduce", "all_gather_into_tensor"):  # gradients once, weights once
        assert four["payload_bytes"][vector] == pytest.approx(4 * numbers, rel=0.01)
    model = predicted_bytes(shape_of("tiny", 1, 2, "fp32", True), 4)
    assert four["bytes_sent"] == pytest.approx(model, rel=0.01)


def test_gradients_are_sent_in_the_requested_dtype() -> None:
    numbers = parameter_count(shape_of("tiny", 1, 2, "fp32", True).model, 30_522)
    bf16 = {"bf16": {"enabled": True}}
    narrow = counted(1, 1, **bf16, communication_data_type="bf16")["bytes_by_dtype"]
    wide = counted(1, 1, **bf16, communication_data_type="fp32")["bytes_by_dtype"]
    # bf16: gradients and weights; fp32: weights stay bf16, gradients do not.
    assert narrow["bfloat16"] == pytest.approx(2 * 2 * numbers, rel=0.01)
    assert wide["bfloat16"] == pytest.approx(2 * numbers, rel=0.01)
    assert wide["float32"] == pytest.approx(4 * numbers, rel=0.01)
    assert narrow.get("float32", 0) < 1000


def test_the_benchmark_runs(tmp_path, capsys) -> None:
    path = tmp_path / "s.json"
    assert main(["--tiny", "--json", str(path)]) == 0
    assert "4096 GPUs" in capsys.readouterr().out
    assert path.is_file()
    assert "all_reduce" in CALLS
