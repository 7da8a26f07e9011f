"""Whatever the stage, ranks and micro batches: the optimizer is given one process's gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import gradient_oracle as oracle
from tests.support.engine_worker import run
from tests.support.fork_server import ForkServer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_and_norm_are_those_of_one_process(
    fork_server: ForkServer, world_size: int, tmp_path: Path
) -> None:
    cases = oracle.cases(world_size, faults=world_size > 1)
    found = run(fork_server, world_size, cases, tmp_path)
    for case in cases:
        deviation = oracle.deviation(case, found[case["name"]])
        if case["fault"]:
            # The planted fault: the last micro batch is not added up over the ranks.
            assert deviation > 0.1, case["name"]
            continue
        assert deviation < oracle.LIMITS[case["precision"]], case["name"]
        # The model's own roundings in bf16 come on top: measured 1.0e-2.
        from_float64 = oracle.distance_from_float64(found[case["name"]])
        limit = 1e-6 if case["precision"] == "fp32" else 2.0**-6
        assert from_float64 < limit, case["name"]
