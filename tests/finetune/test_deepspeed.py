"""The same task under DeepSpeed gives the same scores, at any stage and number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertds.distributed.rank_info import free_port


def run(command: list[str], processes: int) -> None:
    port = str(free_port())
    children = []
    for rank in range(processes):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        children.append(
            subprocess.Popen([sys.executable, "-m", "bertds.cli", *command], env=environment)
        )
    try:
        assert [child.wait(timeout=280) for child in children] == [0] * processes
    finally:
        for child in children:
            child.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (2, 2), (3, 2)])
def test_weights_equal_those_without_deepspeed(
    tiny_bert: Path, tiny_sst2: Path, tmp_path: Path, stage: int, processes: int
) -> None:
    config = json.loads((tiny_bert / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_bert.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(config))
    settings = {
        "train_batch_size": 20,
        "train_micro_batch_size_per_gpu": 5,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "eps": 1e-8}},
    }
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    # 96 rows in batches of 20: the last batch of an epoch has 16.
    common = [
        "finetune",
        "--task",
        "sst2",
        "--model",
        str(model),
        "--data",
        str(tiny_sst2),
        "--epochs",
        "2",
        "--seeds",
        "1",
        "2",
    ]
    run(
        [
            *common,
            "--out",
            str(tmp_path / "plain"),
            "--batch-size",
            "20",
            "--learning-rate",
            "1e-3",
        ],
        1,
    )
    run(
        [*common, "--out", str(tmp_path / "ds"), "--deepspeed_config", str(tmp_path / "ds.json")],
        processes,
    )
    plain, ours = (json.loads((tmp_path / d / "results.json").read_text()) for d in ("plain", "ds"))
    for left, right in zip(plain["runs"], ours["runs"], strict=True):
        assert left["steps"] == right["steps"] == 10
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
    left, right = (load_file(tmp_path / d / "model" / "model.safetensors") for d in ("plain", "ds"))
    for name, tensor in left.items():
        assert torch.allclose(tensor, right[name], atol=2e-5), name
