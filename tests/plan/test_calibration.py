"""Forecasts calibrated with a run: made-up ones, and real ones on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bertds.cli import main as command
from bertds.cost_model.flops import forward_backward_flops, masked_per_row, parameter_count
from bertds.cost_model.hardware import find
from bertds.distributed.rank_info import free_port
from bertds.errors import UserError
from bertds.monitor.run_files import read_metrics
from bertds.plan.calibration import calibrate, read_run
from bertds.plan.forecast import forecast
from tests.support.made_runs import add_vocabulary, make_run, train_line


def test_calibration_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        calibrate(tmp_path)


def test_calibration_separates_the_optimizer_and_what_each_micro_batch_moves(
    tmp_path: Path,
) -> None:
    """Runs that differ in rows and accumulation measure the same speed of products and memory."""
    vocabulary, tokens, update = 1000, 112, 0.28
    # An update moves 28 bytes a number, so 0.01 s for each; a micro batch moves 24.
    moving, product = 0.24, 0.2  # seconds of a micro batch, and of one of its rows

    def run(name: str, rows: int, micro_batches: int, **changes: float) -> Path:
        seconds = micro_batches * (moving + rows * product) + update
        of_step = rows * micro_batches * tokens
        lines = [
            train_line(
                10 * n,
                samples=10 * n * of_step // tokens,
                tokens=10 * n * of_step,
                seconds=10 * seconds,
                tokens_per_second=of_step / seconds,
                **{"optimizer_seconds": 10 * update, **changes},
            )
            for n in range(1, 6)
        ]
        made = make_run(tmp_path / name, lines)
        settings = json.loads((made / "deepspeed.json").read_text())
        settings["train_micro_batch_size_per_gpu"] = rows
        settings["train_batch_size"] = rows * micro_batches
        (made / "deepspeed.json").write_text(json.dumps(settings))
        add_vocabulary(made, vocabulary)
        return made

    few, many = run("few", 2, 1), run("many", 8, 4)
    model = read_run(few)[0].model
    flops = forward_backward_flops(model, vocabulary, tokens, masked_per_row(tokens, 0.15, 20))
    for folder in (few, many):
        found = calibrate(folder)
        assert found.rate == pytest.approx(flops / product)
        rate = 28 * parameter_count(model, vocabulary) / update
        assert found.memory_rate == pytest.approx(rate)
    # And each predicts the other.
    for made, given, seconds in ((many, few, 4 * (0.24 + 1.6) + 0.28), (few, many, 0.92)):
        assert planned(made, given).step.total == pytest.approx(seconds, rel=1e-3)
    # A run from before the time was recorded: all of it counts as products.
    old = calibrate(run("old", 2, 1, optimizer_seconds=0.0))
    assert old.memory_rate is None and old.rate == pytest.approx(2 * flops / 0.92)


def test_each_line_is_counted_at_the_mask_rate_of_its_steps(tmp_path: Path) -> None:
    """A device of constant speed: the higher the rate, the fewer tokens per second."""
    vocabulary, tokens, speed = 30_000, 112, 1e9
    made = make_run(tmp_path / "run", [train_line(1)], total=50)
    recipe = (made / "config.yaml").read_text()
    recipe = recipe.replace("data: {", "data: {masked_lm_prob: 0.17, masked_lm_prob_end: 0.05, ")
    (made / "config.yaml").write_text(recipe)
    add_vocabulary(made, vocabulary)
    model = read_run(made)[0].model
    lines = []
    for n in range(1, 6):
        rate = 0.17 - 0.12 * (10 * n - 5.5) / 50  # the mean of the line's ten steps
        flops = forward_backward_flops(model, vocabulary, tokens, rate * tokens)
        per_second = tokens * speed / flops
        changes = {"tokens": 320 * n * tokens, "samples": 320 * n, "optimizer_seconds": 0.0}
        lines.append(train_line(10 * n, tokens_per_second=per_second, **changes))
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert calibrate(made).rate == pytest.approx(speed, rel=1e-6)


@pytest.mark.parametrize("changes", [{}, {"average": True}, {"bucket": 1000}])
def test_what_the_plan_counts_is_no_part_of_the_base(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A run that is planned from its own measurements needs what it was measured to need."""
    tokens = 112
    lines = [train_line(n, samples=32 * n, tokens=32 * n * tokens) for n in range(1, 6)]
    run = make_run(tmp_path / "run", lines)
    add_vocabulary(run, 1000)
    if changes.get("average"):
        recipe = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(
            recipe.replace("schedule: {", "schedule: {ema_decay: 0.99, ")
        )
    settings = json.loads((run / "deepspeed.json").read_text())
    settings["zero_optimization"] = {"stage": 1}
    if "bucket" in changes:
        settings["zero_optimization"]["reduce_bucket_size"] = changes["bucket"]
    (run / "deepspeed.json").write_text(json.dumps(settings))
    assert planned(run, run).memory_gib == pytest.approx(lines[0]["memory_gib"], rel=1e-6)


MIDDLE = ["model.hidden_size=384", "model.num_attention_heads=6", "model.intermediate_size=1536"]


CPU_CLOCK = "import runpy, sys, time; time.perf_counter = time.process_time; del sys.argv[0]; "
CPU_CLOCK += "runpy.run_path(sys.argv[0], run_name='__main__')"


def start_run(
    repository: Path, data: Path, run: Path, *assignments: str, processes: int = 1
) -> list[subprocess.Popen[bytes]]:
    """Start training in processes of its own, timed by the CPU seconds that it uses."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    port = str(free_port())
    children = []
    for rank in range(processes):
        if processes > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        children.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    CPU_CLOCK,
                    str(repository / "bertds/train.py"),
                    "--config",
                    str(repository / "bertds/recipes/tiny_cpu_phase1.yaml"),
                    "--deepspeed_config",
                    str(repository / "ds_configs/tiny_cpu_phase1.json"),
                    "--set",
                    f"run.dir={run}",
                    f"data.path={data}",
                    "log.every_steps=1",
                    "validation.max_samples=8",
                    "validation.micro_batch_size=2",
                    "data.sequence_length=96",
                    *MIDDLE,
                    *assignments,
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    return children


def finish(children: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all processes of a run."""
    try:
        assert [child.wait(timeout=300) for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()


def real_run(
    repository: Path, data: Path, run: Path, *assignments: str, processes: int = 1
) -> dict[str, Any]:
    """Train in a process of its own, so that its peak memory is its own; return the last line."""
    finish(start_run(repository, data, run, *assignments, processes=processes))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if "memory_gib" in line][-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [
            "deepspeed.zero_optimization.stage=0",
            "deepspeed.train_batch_size=8",
            "deepspeed.train_micro_batch_size_per_gpu=4",
        ],
        ["deepspeed.train_batch_size=48", "deepspeed.train_micro_batch_size_per_gpu=24"],
        [
            "model.num_hidden_layers=9",
            "deepspeed.zero_optimization.stage=2",
            "deepspeed.train_batch_size=16",
            "deepspeed.train_micro_batch_size_per_gpu=8",
        ],
        [
            "model.num_hidden_layers=9",
            "model.activation_checkpointing=full",
            "deepspeed.train_batch_size=64",
            "deepspeed.train_micro_batch_size_per_gpu=64",
        ],
        [
            "model.activation_checkpointing=full",
            "model.hidden_dropout_prob=0.1",
            "model.attention_probs_dropout_prob=0.1",
            "deepspeed.train_batch_size=24",
            "deepspeed.train_micro_batch_size_per_gpu=24",
        ],
    ],
    ids=["stage 0", "large micro batch", "deeper, stage 2", "recomputed", "recomputed, dropout"],
)
def test_memory_of_real_runs_within_10_percent(
    repository: Path,
    tiny_data: Path,
    calibrating_run: Path,
    tmp_path: Path,
    changes: list[str],
) -> None:
    run = tmp_path / "run"
    layers = [] if any("num_hidden_layers" in c for c in changes) else ["model.num_hidden_layers=5"]
    measured = real_run(repository, tiny_data, run, "schedule.total_steps=3", *layers, *changes)
    plan = planned(run, calibrating_run)
    print(f"measured {measured['memory_gib']:.3f} GiB, planned {plan.memory_gib:.3f}")  # pytest -s
    assert plan.memory_gib == pytest.approx(measured["memory_gib"], rel=0.10)


def planned(run: Path, calibrating_run: Path) -> Any:
    """Forecast a run from its own settings and another run's measurements."""
    from bertds.engine.ds_config import check_deepspeed_values

    config, values, words, ranks = read_run(run)
    return forecast(
        config,
        check_deepspeed_values(values),
        find("cpu"),
        nodes=1,
        devices_per_node=ranks,
        vocab_size=words,
        calibration=calibrate(calibrating_run),
    )


@pytest.fixture(scope="module")
def calibrating_run(
    repository: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of other sizes, which the forecasts are calibrated with.

    The first run after an installation compiles the loader's loops and holds 50 MiB more: they are
    compiled before.
    """
    assert command(["prep", "show", str(tiny_data), "-n", "1"]) == 0
    run = tmp_path_factory.mktemp("calibrate") / "run"
    real_run(
        repository,
        tiny_data,
        run,
        "schedule.total_steps=8",
        "model.num_hidden_layers=3",
        "deepspeed.train_batch_size=16",
        "deepspeed.train_micro_batch_size_per_gpu=8",
    )
    return run


@pytest.mark.slow
def test_calibration_with_two_processes(repository: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Two processes calibrate the forecast of two others: memory, and the speed of each."""
    sizes = ["deepspeed.train_batch_size=32", "deepspeed.train_micro_batch_size_per_gpu=8"]
    first, second = tmp_path / "first", tmp_path / "second"
    real_run(
        repository,
        tiny_data,
        first,
        "schedule.total_steps=5",
        "model.num_hidden_layers=3",
        "checkpoint.every_steps=0",
        *sizes,
        processes=2,
    )
    measured = real_run(
        repository,
        tiny_data,
        second,
        "schedule.total_steps=3",
        "model.num_hidden_layers=8",
        "deepspeed.zero_optimization.stage=2",
        *sizes,
        processes=2,
    )
    for folder in (first / "checkpoints", second / "checkpoints"):
        shutil.rmtree(folder)  # the number of processes is known without them
    plan = planned(second, first)
    assert plan.batch.world_size == 2 and plan.batch.gradient_accumulation_steps == 2
    assert plan.memory_gib == pytest.approx(measured["memory_gib"], rel=0.10)
    # The rate is one process's: what both did, in the CPU seconds of one, shared by two.
    lines = read_metrics(first / "metrics.jsonl").train
    tflops = sorted(line["tflops"] for line in lines[1:])
    assert tflops[0] <= calibrate(first).rate / 1e12 <= tflops[-1]


@pytest.mark.slow
def test_time_of_a_real_run_within_25_percent_after_calibration(
    repository: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Half the depth and 33% of the micro batch predict the time of the whole.

    Both runs train at the same time and count CPU seconds, so that whatever else the machine does
    slows both alike; what is left (caches, shared cores) is measured again, three times at most.
    """
    missed = []
    for attempt in range(3):
        first, second = tmp_path / f"first_{attempt}", tmp_path / f"second_{attempt}"
        small = start_run(
            repository,
            tiny_data,
            first,
            "schedule.total_steps=24",
            "model.num_hidden_layers=3",
            "deepspeed.train_batch_size=16",
            "deepspeed.train_micro_batch_size_per_gpu=8",
        )
        large = start_run(
            repository,
            tiny_data,
            second,
            "schedule.total_steps=5",
            "model.num_hidden_layers=6",
            "deepspeed.train_batch_size=48",
            "deepspeed.train_micro_batch_size_per_gpu=24",
        )
        finish([*small, *large])
        measured = median(
            line["seconds"] for line in read_metrics(second / "metrics.jsonl").train[1:]
        )
        plan = planned(second, first)
        found = plan.step.total
        print(f"measured {measured:.3f} s a step, planned {found:.3f}")  # pytest -s
        if found == pytest.approx(measured, rel=0.25):
            return
        missed.append((found, measured))
    pytest.fail(f"planned and measured CPU seconds of a step: {missed}")
