"""A GPU that fails or hangs ends the job. Needs two GPUs, one per rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.monitor.run_files import read_metrics
from tests.support.ranks import REPOSITORY, free_ports, rank_environment

pytestmark = pytest.mark.gpu

RANK = """
import json, sys
from tests.support.fault_injection import plant
plant(json.loads(sys.argv[1]))
from bertds.train import entry
raise SystemExit(entry(sys.argv[2:]))
"""
SETTINGS = [
    "schedule.total_steps=14",
    "checkpoint.every_steps=3",
    "run.compile=false",
    "guard.peer_timeout_seconds=10",
    "guard.progress_timeout_seconds=15",
    "deepspeed.bf16.enabled=true",
]


def start(command: list[str], plans: dict[int, dict[str, Any]]) -> list[tuple[int, str]]:
    """Run two ranks; return the exit code and the output of each."""
    (port,) = free_ports(1)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, json.dumps(plans.get(rank, {})), *command],
            env={**rank_environment(rank, 2, port), "DS_ACCELERATOR": "cuda"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, texts)]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["gpu_error", "gpu_sleep"])
def test_a_gpu_that_fails_or_hangs_ends_the_job(
    command: Callable[..., list[str]], tmp_path: Path, fault: str, victim: int
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    line = command("run", *SETTINGS)
    for code, text in start(line, {victim: {"fault": [fault, 11]}}):
        assert code not in (0, 75), text
    said = (tmp_path / "run/log.txt").read_text()
    assert "no progress for" in said if fault == "gpu_sleep" else f"rank {victim}" in said
    assert [code for code, _ in start(line, {})] == [0, 0]
    steps = [values["step"] for values in read_metrics(tmp_path / "run/metrics.jsonl").train]
    assert steps == list(range(1, 15))
