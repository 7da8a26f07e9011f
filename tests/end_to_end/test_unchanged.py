from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.unchanged import REPOSITORY, STORED, figures


@pytest.mark.slow
def test_losses_and_shards_equal_the_recorded_ones(tmp_path: Path) -> None:
    """One and two processes, both phases, fp32; ``--exact`` of unchanged.py is stricter."""
    found, stored = figures(REPOSITORY, tmp_path), json.loads(STORED.read_text())
    assert found["shards"] == stored["shards"] and len(stored["shards"]) > 2
    assert found["losses"].keys() == stored["losses"].keys() and len(stored["losses"]) == 4
    for name, losses in stored["losses"].items():
        assert found["losses"][name] == pytest.approx(losses, rel=1e-5), name
