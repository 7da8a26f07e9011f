"""A run that does not fit the machine is refused before anything is built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.config.load import load_config
from bertds.config.recipe import Config
from bertds.cost_model.memory import estimate
from bertds.data.batches import pad_to_budget
from bertds.distributed.rank_info import RankInfo
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json
from bertds.errors import ConfigError
from bertds.train import entry
from bertds.training.will_it_fit import check_fits, processes_here, shape_of
from tests.gpu.small_bert import make_rows

GIB = 2**30
ALONE = RankInfo(0, 0, 1)


def recipe(**changes: Any) -> Config:
    return load_config("large_phase1", changes)


def settings(repository: Path, name: str, **changes: Any) -> DeepSpeedSettings:
    return load_deepspeed_json(repository / f"ds_configs/{name}.json", changes)


def free(monkeypatch: pytest.MonkeyPatch, *, cpu: float = 0.0, gpu: float = 0.0) -> None:
    """Let the machine have this number of GiB free; a GPU only with ``gpu``."""
    here = "bertds.training.will_it_fit"
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(f"{here}.cpu_memory_available", lambda: cpu * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu * GIB, 80 * GIB))


def refusal(config: Config, json: DeepSpeedSettings, place: RankInfo = ALONE) -> str:
    with pytest.raises(ConfigError) as refused:
        check_fits(config, json, place, 30522)
    return str(refused.value)


def test_a_gpu_json_without_a_gpu_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, cpu=2000.0)
    json = settings(repository, "lamb_phase1_a100_80g")
    said = refusal(recipe(), json)
    assert "this JSON is for GPUs (bf16, micro batch 512), but this machine has none" in said
    assert "--config tiny_cpu_phase1" in said and "run.ignore_memory=true" in said
    assert re.search(r"about \d+ years on its CPU", said)
    check_fits(recipe(**{"run.ignore_memory": True}), json, ALONE, 30522)
    # Half precision alone is no reason: a small model trains in it on a CPU.
    tiny = load_config("tiny_cpu_phase1")
    check_fits(tiny, settings(repository, "devlin_phase1"), ALONE, 2048)


def test_a_run_that_does_not_fit_a_cpu_is_refused_with_a_setting_that_does(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, cpu=32.0)
    config, name = recipe(), "lamb_phase1_a100_80g"
    on_cpu = {"bf16": {"enabled": False}}
    said = refusal(config, settings(repository, name, **on_cpu))
    assert "GiB per process are needed, but only 32.0 GiB of this machine are free" in said
    found = re.search(r"--set deepspeed.train_micro_batch_size_per_gpu=(\d+) fits", said)
    assert found is not None
    rows = int(found[1])
    fitting = settings(repository, name, **on_cpu, train_micro_batch_size_per_gpu=rows)
    check_fits(config, fitting, ALONE, 30522)
    refusal(config, settings(repository, name, **on_cpu, train_micro_batch_size_per_gpu=2 * rows))

    free(monkeypatch, cpu=2.0)
    assert "not even one row fits; use a smaller model" in refusal(config, fitting)
    free(monkeypatch, cpu=32.0)  # shared by four processes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "8.0 GiB of this machine for each of its 4 processes" in refusal(
        config, fitting, RankInfo(0, 0, 4)
    )


def test_a_run_that_does_not_fit_a_gpu_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    json = settings(repository, "lamb_phase1_a100_80g")
    free(monkeypatch, gpu=79.0)
    check_fits(recipe(), json, ALONE, 30522)
    free(monkeypatch, gpu=14.0)
    said = refusal(recipe(), json, RankInfo(9, 1, 16))
    assert "14.0 GiB on GPU 1 are free" in said and "no GPU" not in said
    rows = re.search(r"train_micro_batch_size_per_gpu=(\d+) fits", said)
    assert rows is not None and 1 <= int(rows[1]) < 512
    # Where even one row is too much, recomputing or a higher stage may help.
    free(monkeypatch, gpu=4.0)
    assert "zero_optimization.stage=" in refusal(recipe(), json, RankInfo(0, 0, 16))


def test_auto_is_counted_with_one_row(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, gpu=14.0)
    auto = settings(repository, "lamb_phase1_a100_80g", train_micro_batch_size_per_gpu="auto")
    check_fits(recipe(), auto, ALONE, 30522)


def test_train_refuses_before_anything_is_built(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("README's command trains here")
    run = tmp_path / "run"
    command = ["--config", "large_phase1", "--deepspeed_config", "lamb_phase1_a100_80g", "--set"]
    assert entry([*command, f"run.dir={run}", f"data.path={tiny_data}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "this JSON is for GPUs" in error and "Traceback" not in error
    assert not (run / "checkpoints").exists() and not (run / ".lock").exists()


@pytest.mark.parametrize(
    ("values", "world_size", "expected"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 8, 2),
        ({"LOCAL_SIZE": "4"}, 8, 4),
        ({"SLURM_NNODES": "4"}, 32, 8),
        ({}, 3, 3),
        ({"LOCAL_WORLD_SIZE": "x"}, 1, 1),
    ],
)
def test_processes_of_this_machine(values: dict[str, str], world_size: int, expected: int) -> None:
    assert processes_here(world_size, values) == expected


def test_fillers_of_packed_micro_batches_are_counted(repository: Path) -> None:
    rows = make_rows(0, [16, 16])
    config = recipe(
        **{
            "data.pack_tokens": 20,
            "data.sequence_length": 16,
            "data.max_predictions_per_sequence": 4,
        }
    )
    filled = pad_to_budget(rows, 20, 4)
    json = settings(repository, "lamb_phase1_h100", train_micro_batch_size_per_gpu=2)
    shape = shape_of(config, json, json.batch_plan(1), 30522, on_cpu=False, tokens_per_row=16.0)
    assert shape.micro_batch_tokens == filled.input_ids.numel() == 40
    assert 2 * shape.masked_per_row == filled.masked_lm_ids.numel() == 8
    twenty = replace(shape, tokens_per_row=20.0, packed=0)  # rows of 20 real tokens
    assert estimate(shape).activations == estimate(twenty).activations
