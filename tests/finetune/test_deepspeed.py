"""The same task under DeepSpeed gives the same weights, at any stage and number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertds.cli import main
from tests.support.fork_server import ForkServer


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout, whose masks depend on the division of a batch."""
    folder = tmp_path_factory.mktemp("no_dropout") / "model"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def common(model: Path, tiny_sst2: Path) -> list[str]:
    """The command for both; 96 rows in batches of 20: the last batch of an epoch has 16."""
    given = ["--task", "sst2", "--model", str(model), "--data", str(tiny_sst2)]
    return ["finetune", *given, "--epochs", "2", "--seeds", "1", "2"]


@pytest.fixture(scope="module")
def plain(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result without DeepSpeed."""
    out = tmp_path_factory.mktemp("plain") / "out"
    settings = ["--batch-size", "20", "--learning-rate", "1e-3"]
    assert main([*common, "--out", str(out), *settings]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (2, 2), (3, 2)])
def test_weights_equal_those_without_deepspeed(
    fork_server: ForkServer,
    common: list[str],
    plain: Path,
    tmp_path: Path,
    stage: int,
    processes: int,
) -> None:
    settings = {
        "train_batch_size": 20,
        "train_micro_batch_size_per_gpu": 5,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "eps": 1e-8}},
    }
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    command = [*common, "--out", str(out), "--deepspeed_config", str(tmp_path / "ds.json")]
    fork_server.run_bertds(command, processes, tmp_path)
    expected, found = (json.loads((p / "results.json").read_text()) for p in (plain, out))
    for left, right in zip(expected["runs"], found["runs"], strict=True):
        assert left["steps"] == right["steps"] == 10
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
    weights = load_file(out / "model" / "model.safetensors")
    for name, tensor in load_file(plain / "model" / "model.safetensors").items():
        assert torch.allclose(tensor, weights[name], atol=2e-5), name
