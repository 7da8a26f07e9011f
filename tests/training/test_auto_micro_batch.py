"""The largest micro-batch is found, kept, and agreed on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bertds.config.recipe import Config, DataConfig, ModelConfig, ScheduleConfig
from bertds.config.run_settings import RunConfig
from bertds.cost_model.flops import parameter_count
from bertds.distributed.rank_info import RankInfo
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from bertds.training import auto_micro_batch
from bertds.training.auto_micro_batch import choose_micro_batch, largest_that_runs, worth_trying

ALONE = RankInfo(0, 0, 1)
MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)


def recipe(limit_gib: float | None) -> Config:
    data = DataConfig(sequence_length=32, max_predictions_per_sequence=5)
    return Config(model=MODEL, data=data, run=RunConfig(memory_limit_gib=limit_gib))


def settings(batch: int = 96, **more):
    values = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        **more,
    }
    return check_deepspeed_values(values)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bertds" / "micro_batch.json"


@pytest.fixture(scope="module")
def model():
    return BertForPreTraining(MODEL, 101)


def find(model, config, json_settings) -> int:
    return choose_micro_batch(model, config, json_settings, ALONE).train_micro_batch_size_per_gpu


def test_the_result_fits_and_the_next_larger_one_does_not(model) -> None:
    wanted = settings()
    device = torch.device("cpu")
    kept = auto_micro_batch.state_bytes(model, recipe(None), wanted, ALONE, device)
    divisors = [n for n in range(1, 97) if 96 % n == 0]
    for target in (1, 4, 12, 48):
        inputs = auto_micro_batch.full_rows(recipe(None), target, device)
        need = kept + auto_micro_batch.measured_bytes(model, inputs)
        found = find(model, recipe(need * 1.01 / 2**30), wanted)
        assert found == target
        assert found in divisors


def test_what_does_not_depend_on_the_rows_is_that_of_the_check_before_a_run(model) -> None:
    """The moving average and the communication buckets count here as in ``will_it_fit``."""
    device = torch.device("cpu")

    def kept(decay: float, **zero: int) -> float:
        config = replace(recipe(None), schedule=ScheduleConfig(ema_decay=decay))
        given = settings(zero_optimization={"stage": 1, **zero})
        return auto_micro_batch.state_bytes(model, config, given, ALONE, device)

    count = parameter_count(MODEL, 101)
    assert kept(0.99) - kept(0.0) == 4 * count  # one float32 number per parameter
    assert kept(0.0) - kept(0.0, reduce_bucket_size=10) == 4 * (count - 10)


def test_memory_grows_linearly_with_the_rows(model) -> None:
    device = torch.device("cpu")
    sizes = [
        auto_micro_batch.measured_bytes(
            model, auto_micro_batch.full_rows(recipe(None), rows, device)
        )
        for rows in (2, 4, 8)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.02)
    assert sizes[0] > 2 * 32 * 32 * 4 * 8  # more than a few hidden states


def test_a_micro_batch_has_at_most_all_rows_of_a_rank(model) -> None:
    found = choose_micro_batch(model, recipe(8.0), settings(), ALONE)
    assert found.train_micro_batch_size_per_gpu == 96
    assert found.values["train_micro_batch_size_per_gpu"] == 96
    assert found.batch_plan(1).gradient_accumulation_steps == 1


def test_the_result_is_saved_with_the_facts_it_depends_on(model, cache, monkeypatch) -> None:
    searched = []
    real = auto_micro_batch.search
    monkeypatch.setattr(auto_micro_batch, "search", lambda *args: searched.append(1) or real(*args))
    first = find(model, recipe(8.0), settings())
    assert find(model, recipe(8.0), settings()) == first
    assert len(searched) == 1
    [entry] = json.loads(cache.read_text()).values()
    assert entry["micro_batch"] == first and entry["precision"] == "fp32"
    find(model, recipe(8.0), settings(bf16={"enabled": True}))
    find(model, recipe(8.0), settings(batch=48))
    find(model, recipe(7.0), settings())
    find(model, replace(recipe(8.0), schedule=ScheduleConfig(ema_decay=0.99)), settings())
    find(model, recipe(8.0), settings(zero_optimization={"stage": 0, "reduce_bucket_size": 10}))
    assert len(searched) == 6
    cache.write_text("{ damaged")
    assert find(model, recipe(8.0), settings()) == first
    assert len(searched) == 7


def test_a_model_that_cannot_fit_is_refused_with_figures(model) -> None:
    with pytest.raises(ConfigError, match=r"not even one row of 32 tokens fits: .* GiB are needed"):
        find(model, recipe(1e-4), settings())


def test_a_number_stays_as_it_is(model) -> None:
    plain = settings(train_micro_batch_size_per_gpu=8)
    assert choose_micro_batch(model, recipe(8.0), plain, ALONE) is plain


def test_callers_that_need_a_number_refuse_auto() -> None:
    with pytest.raises(ConfigError, match="determined when training starts; set a number here"):
        settings().batch_plan(1)
    with pytest.raises(ConfigError, match="train_batch_size"):
        choose_micro_batch(
            BertForPreTraining(MODEL, 101), recipe(8.0), settings(9), replace(ALONE, world_size=2)
        )


def test_a_gpu_that_runs_out_gets_the_next_smaller_one() -> None:
    tried = []

    def run(rows: int) -> None:
        tried.append(rows)
        if rows > 6:
            raise torch.OutOfMemoryError

    assert largest_that_runs([1, 2, 3, 6, 12, 24], run) == 6
    assert tried == [24, 12, 6]


def test_a_run_starts_with_auto(command, tiny_json, tmp_path) -> None:
    from bertds.train import main

    values = json.loads(tiny_json.read_text())
    values["train_micro_batch_size_per_gpu"] = "auto"
    path = tmp_path / "auto.json"
    path.write_text(json.dumps(values))
    assert main(command("run", "schedule.total_steps=2", deepspeed=path)) == 0


def test_on_a_gpu_the_search_starts_from_enough_tokens() -> None:
    divisors = [2**power for power in range(13)]
    assert worth_trying(divisors, 128)[-1] == 512
    assert worth_trying(divisors, 512)[-1] == 128
    assert worth_trying([1, 3, 5], 128) == [1, 3, 5]  # memory is the limit
    assert worth_trying([1, 2], 100_000) == [1]
