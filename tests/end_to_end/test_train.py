from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.config.batch_plan import BatchPlan
from bertds.config.load import load_config
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import join_columns
from bertds.data.loader import BatchLoader, open_source
from bertds.data.samples.flat_rows import build_instances
from bertds.monitor.mfu import Meter
from bertds.monitor.run_files import read_metrics
from bertds.train import entry
from tests.support.fork_server import ForkServer
from tests.support.ranks import free_ports, rank_environment
from tests.support.read_runs import assert_same_state, assert_same_weights, averages, losses


def test_a_run_leaves_what_the_readme_says(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("run", "validation.every_steps=3", "checkpoint.every_steps=3")) == 0
    run = tmp_path / "run"
    there = {path.name for path in run.iterdir()}
    assert there == {
        "config.yaml",
        "deepspeed.json",
        "environment.json",
        "tokenizer",
        "metrics.jsonl",
        "settings.jsonl",
        "log.txt",
        "checkpoints",
        "DONE",
    }
    lines = read_metrics(run / "metrics.jsonl").lines
    train = [line for line in lines if "split" not in line]
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    wanted = {
        "step",
        "loss",
        "mlm_loss",
        "nsp_loss",
        "lr",
        "grad_norm",
        "samples",
        "tokens",
        "tokens_per_second",
    }
    assert wanted <= set(train[0])
    assert train[-1]["samples"] == 72 and 0 < train[-1]["tokens"] <= 72 * 32
    assert train[0]["loss"] == pytest.approx(train[0]["mlm_loss"] + train[0]["nsp_loss"], rel=1e-6)
    validation = [line for line in lines if line.get("split") == "validation"]
    assert [line["step"] for line in validation] == [3, 6]
    assert {"mlm_loss", "mlm_accuracy", "nsp_accuracy"} <= set(validation[0])
    # 60 words, some more frequent than others; about half of the pairs are random.
    assert 3.0 < validation[0]["unigram_entropy"] < math.log(65)
    assert 0.5 <= validation[0]["nsp_majority"] < 0.75
    # The same five prompts at each validation, each a word of the text with one mask.
    first, last = (line["prompts"] for line in validation)
    assert len(first) == 5
    for one, other in zip(first, last, strict=True):
        assert (one["text"], one["answer"]) == (other["text"], other["answer"])
        assert one["text"].split().count("[MASK]") == 1 and one["answer"].startswith("w")
        assert one["predicted"]
    assert [p.name for p in step_folders(run / "checkpoints")] == ["step_00000006", "step_00000003"]
    # Done is done: nothing is repeated.
    before = (run / "metrics.jsonl").read_text()
    assert entry(command("run")) == 0
    assert (run / "metrics.jsonl").read_text() == before


def test_stages_and_process_counts_give_the_same_losses(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("whole", "schedule.total_steps=20")) == 0
    reference = losses(tmp_path / "whole")
    assert len(reference) == 20 and sum(reference[-5:]) < sum(reference[:5]) - 0.1
    first_steps = ("schedule.total_steps=8", "schedule.horizon_steps=20")
    for stage in range(4):
        zero = f"deepspeed.zero_optimization.stage={stage}"
        assert entry(command(f"one{stage}", zero, *first_steps)) == 0
        two = command(f"two{stage}", zero, *first_steps)
        assert fork_server.run(two, 2, output=tmp_path)[0] == 0
        for run in (f"one{stage}", f"two{stage}"):
            assert losses(tmp_path / run) == pytest.approx(reference[:8], rel=1e-5), run


def test_micro_batch_does_not_change_the_losses(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("a")) == 0
    assert entry(command("b", "deepspeed.train_micro_batch_size_per_gpu=6")) == 0
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
def test_a_run_stopped_after_every_step_equals_an_uninterrupted_one(
    command: Callable[..., list[str]], tmp_path: Path, optimizer: str
) -> None:
    extra = [
        "log.every_steps=4",
        f"deepspeed.optimizer.type={optimizer}",
        "deepspeed.zero_optimization.stage=2",
        # With dropout: its noise must not depend on where the run was stopped.
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
    ]
    assert entry(command("whole", *extra)) == 0
    codes = [entry(command("broken", *extra, "run.max_hours=0")) for _ in range(6)]
    assert codes == [75, 75, 75, 75, 75, 0]
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 2  # after step 4, and after the last, the sixth
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


CHANGING = (
    "schedule.batch_from=4",
    "schedule.batch_ramp_steps=4",
    "data.masked_lm_prob=0.3",
    "data.masked_lm_prob_end=0.1",
    "schedule.decay_steps=2",
    "model.z_loss=1e-3",
    "data.max_predictions_per_sequence=12",
    "schedule.ema_decay=0.6",
)
"""Batches of 4, 4, 8, 8, 12, 12 rows; the mask rate falls by a thirtieth per step; averaged."""


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_what_changes_over_a_run_is_a_function_of_the_step(
    command: Callable[..., list[str]], tmp_path: Path, stage: int
) -> None:
    extra = [*CHANGING, f"deepspeed.zero_optimization.stage={stage}"]
    assert entry(command("whole", *extra)) == 0
    lines = [
        line
        for line in read_metrics(tmp_path / "whole" / "metrics.jsonl").lines
        if "split" not in line
    ]
    assert [line["samples"] for line in lines] == [4, 8, 16, 24, 36, 48]
    codes = [entry(command("broken", *extra, "run.max_hours=0")) for _ in range(6)]
    assert codes == [75, 75, 75, 75, 75, 0]
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_state(tmp_path / "broken", tmp_path / "whole", average=True)
    if stage == 2:  # another micro batch: other accumulation, the same steps
        other = command("other", *extra, "deepspeed.train_micro_batch_size_per_gpu=4")
        assert entry(other) == 0
        assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_operations_are_counted_from_the_masked_tokens_of_each_window(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a window that a restart has cut: its seconds begin at the restart too."""
    windows: list[tuple[int, int, int]] = []

    def read(_: Meter, tokens: int, masked: int, samples: int, seconds: float) -> dict[str, float]:
        windows.append((tokens, masked, samples))
        return {}

    monkeypatch.setattr(Meter, "read", read)
    extra = [*CHANGING, "log.every_steps=2"]
    assert entry(command("run", *extra, "run.max_hours=0")) == 75
    assert entry(command("run", *extra)) == 0
    # The same steps from the loader, counted row by row.
    config = load_config(tmp_path / "run" / "config.yaml")
    plan = BatchPlan(global_batch_size=12, micro_batch_size=2, world_size=1)
    with BatchLoader(
        open_source(config.data, config.run.seed),
        config.data,
        plan,
        0,
        seed=config.run.seed,
        ramp=BatchRamp.of(config.schedule, plan),
        mask_rate=MaskRate.of(config.data, 6),
    ) as loader:
        steps = [
            (b.real_tokens, sum(len(m.masked_lm_ids) for m in b.micro_batches), len(b.samples))
            for b in islice(loader, 6)
        ]
    ranges = ((1, 2), (2, 4), (4, 6))
    assert windows == [tuple(map(sum, zip(*steps[a:b], strict=True))) for a, b in ranges]
    shares = [masked / tokens for tokens, masked, _ in windows]
    assert shares == sorted(shares, reverse=True) and shares[0] > 1.5 * shares[-1]


@pytest.mark.slow
def test_two_ranks_take_the_same_growing_batches(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    extra = [*CHANGING, "deepspeed.zero_optimization.stage=1", "data.balance=tokens"]
    assert entry(command("one", *extra)) == 0
    assert fork_server.run(command("two", *extra), 2, output=tmp_path)[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one = averages(tmp_path / "one")
    for name, average in averages(tmp_path / "two").items():
        torch.testing.assert_close(average, one[name], rtol=1e-4, atol=1e-6)


def test_a_run_resumes_elsewhere(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Another stage, micro batch and number of processes: the same samples and losses."""
    assert entry(command("whole", "run.log_samples=true")) == 0
    journey = [
        (1, ["deepspeed.zero_optimization.stage=1"]),
        (2, ["deepspeed.zero_optimization.stage=3", "deepspeed.train_micro_batch_size_per_gpu=1"]),
        (1, ["deepspeed.zero_optimization.stage=0", "deepspeed.train_micro_batch_size_per_gpu=12"]),
        (2, ["deepspeed.zero_optimization.stage=2"]),
    ]
    for world_size, settings in journey:
        one = command("moved", "run.log_samples=true", "run.max_hours=0", *settings)
        if world_size == 1:
            assert entry(one) == 75
        else:
            assert fork_server.run(one, 2, output=tmp_path)[0] == 75
    assert entry(command("moved", "run.log_samples=true")) == 0
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)

    def samples(run: str) -> dict[int, set[tuple[int, int]]]:
        steps: dict[int, set[tuple[int, int]]] = {}
        for file in sorted((tmp_path / run).glob("samples_rank_*.jsonl")):
            for line in file.read_text().splitlines():
                record = json.loads(line)
                steps.setdefault(record["step"], set()).update(map(tuple, record["samples"]))
        return steps

    assert samples("moved") == samples("whole")
    used = {step: len(numbers) for step, numbers in samples("whole").items()}
    assert used == dict.fromkeys(range(1, 7), 12)


def test_phase_two_takes_weights_and_moments_and_restarts_the_schedule(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("one")) == 0
    longer = ["data.sequence_length=64", "data.max_predictions_per_sequence=10"]
    first = f"init.from={tmp_path / 'one'}"
    # With a learning rate of zero the weights stay what they were.
    frozen = [
        "deepspeed.optimizer.params.lr=0.0",
        "schedule.total_steps=1",
        "schedule.warmup_steps=0",
    ]
    assert entry(command("zero", *longer, first, *frozen)) == 0
    assert_same_weights(tmp_path / "one", tmp_path / "zero")

    def moment(run: str) -> Any:
        reader = CheckpointReader(step_folders(tmp_path / run / "checkpoints")[0])
        return reader.read("bert.embeddings.LayerNorm.weight", "exp_avg_sq", 0, 32), reader.manifest

    assert entry(command("two", *longer, first)) == 0
    lines = read_metrics(tmp_path / "two" / "metrics.jsonl").lines
    assert lines[0]["step"] == 1 and lines[0]["lr"] == pytest.approx(5e-3 / 2)
    (before, one), (_, zero) = moment("one"), moment("zero")
    assert one["optimizer_steps"] == 6 and zero["optimizer_steps"] == 1
    # One more step decays the second moment by 0.999 at most: it was kept.
    assert (moment("zero")[0] >= before * 0.9985).all()
    assert entry(command("all", *longer, first, *frozen, "init.optimizer_state=all")) == 0
    assert moment("all")[1]["optimizer_steps"] == 7
    assert entry(command("none", *longer, first, *frozen, "init.optimizer_state=none")) == 0
    assert (moment("none")[0] < before).any()


def test_low_precision_trains(command: Callable[..., list[str]], tmp_path: Path) -> None:
    assert entry(command("fp32")) == 0
    for stage in (1, 2, 3):
        extra = ["deepspeed.bf16.enabled=true", f"deepspeed.zero_optimization.stage={stage}"]
        assert entry(command(f"bf16_{stage}", *extra)) == 0
        assert losses(tmp_path / f"bf16_{stage}") == pytest.approx(
            losses(tmp_path / "fp32"), rel=0.02
        )


def test_three_ways_to_open_the_data(
    command: Callable[..., list[str]], tmp_path: Path, tiny_text: Path, tiny_vocab: Path
) -> None:
    text = [f"data.path={tiny_text}", f"data.vocab={tiny_vocab}"]
    arguments = command("text")
    arguments = [a for a in arguments if not a.startswith("data.path=")] + text
    assert entry(arguments) == 0
    assert len(losses(tmp_path / "text")) == 6


@pytest.mark.slow
def test_the_launcher_runs_it_from_another_folder(
    command: Callable[..., list[str]], tmp_path: Path, repository: Path
) -> None:
    launcher = Path(sys.executable).with_name("deepspeed")
    base = [
        sys.executable,
        str(launcher),
        "--num_accelerators",
        "2",
        "--master_port",
        str(free_ports(1)[0]),
        str(repository / "bertds" / "train.py"),
    ]
    environment = {
        k: v
        for k, v in rank_environment(0, 1, 0).items()
        if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHONPATH")
    }
    answer = subprocess.run(
        [*base, *command("run")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(losses(tmp_path / "run")) == 6
    answer = subprocess.run(
        [*base, *command("other", "run.sed=1")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert answer.returncode == 2
    assert answer.stderr.count("unknown key run.sed") == 1


def test_help_by_path_from_another_folder(tmp_path: Path, repository: Path) -> None:
    for script in ("bertds/train.py", "data_prep/build_wiki_books.py"):
        answer = subprocess.run(
            [sys.executable, str(repository / script), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 0 and "usage:" in answer.stdout
        assert len(answer.stdout.splitlines()) <= 50


def test_a_run_of_one_process_needs_no_port(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Two such runs on one machine get the launcher's usual port: neither may fail on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, text = fork_server.run(
            command("alone", "schedule.total_steps=1", "schedule.warmup_steps=0"),
            output=tmp_path,
            environment={"MASTER_PORT": port},
        )
    assert code == 0, text


def test_rows_without_pair_labels_have_no_next_sentence_scores(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    tiny_data: Path,
    tiny_vocab: Path,
) -> None:
    """NVIDIA HDF5 files may lack them, although the model has the head: 0.0 would be untrue."""
    rows = RowSettings(sequence_length=32, max_predictions=5, pairs="none")
    source = open_source(DataConfig(path=str(tiny_data), sequence_length=32), 1)
    shards = [source.shard(number) for number in range(source.shards)]
    for split in ("training", "test"):
        chunks = build_instances(shards, 0, rows, 1, tokenizer=source.tokenizer)
        path = tmp_path / "rows" / f"x_{split}_0.hdf5"
        path.parent.mkdir(exist_ok=True)
        write_instance_file(path, join_columns(chunks))
    arguments = [part for part in command("run") if not part.startswith("data.path=")]
    arguments += [f"data.path={tmp_path / 'rows'}", f"data.vocab={tiny_vocab}"]
    code, text = fork_server.run(arguments, output=tmp_path)
    assert code == 0 and "the next-sentence head is not trained" in text, text
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl").lines
    assert lines[-1]["split"] == "validation" and lines[-1]["loss"] == lines[-1]["mlm_loss"]
    assert not [key for line in lines for key in line if key.startswith("nsp")]
