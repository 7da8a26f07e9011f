from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.distributed.rank_info import find_place
from bertds.monitor.run_files import read_metrics
from bertds.pretrained.load import open_trained
from bertds.pretrained.model_card import model_card
from bertds.report.write import write_report
from bertds.train import entry
from tests.support.ranks import free_ports, rank_environment, run_ranks, start_ranks


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train in this process: no launcher's variables from outside, its signal handlers put back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def losses(run: Path) -> list[float]:
    return [
        line["loss"] for line in read_metrics(run / "metrics.jsonl").lines if "split" not in line
    ]


def weights(run: Path) -> dict[str, Any]:
    return dict(CheckpointReader(step_folders(run / "checkpoints")[0]).weights())


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not one[name].equal(two[name])]
    assert different == []


def test_a_run_leaves_what_the_readme_says(command: Any, tmp_path: Path) -> None:
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


def test_stages_and_process_counts_give_the_same_losses(command: Any, tmp_path: Path) -> None:
    def commands(prefix: str) -> list[list[str]]:
        key = "deepspeed.zero_optimization.stage"
        return [
            command(f"{prefix}{stage}", "schedule.total_steps=20", f"{key}={stage}")
            for stage in range(4)
        ]

    for one in commands("one"):
        assert entry(one) == 0
    assert run_ranks(2, commands("two")) == [0, 0, 0, 0]
    reference = losses(tmp_path / "one0")
    assert len(reference) == 20 and sum(reference[-5:]) < sum(reference[:5]) - 0.1
    for name in ("one1", "one2", "one3", "two0", "two1", "two2", "two3"):
        assert losses(tmp_path / name) == pytest.approx(reference, rel=1e-5), name


def test_micro_batch_does_not_change_the_losses(command: Any, tmp_path: Path) -> None:
    assert entry(command("a")) == 0
    assert entry(command("b", "deepspeed.train_micro_batch_size_per_gpu=6")) == 0
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
def test_a_run_stopped_after_every_step_equals_an_unbroken_one(
    command: Any, tmp_path: Path, optimizer: str
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
)
"""Batches of 4, 4, 8, 8, 12, 12 rows; the mask rate falls by a thirtieth per step."""


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_what_changes_over_a_run_is_a_function_of_the_step(
    command: Any, tmp_path: Path, stage: int
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
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    if stage == 2:  # another micro batch: other accumulation, the same steps
        other = command("other", *extra, "deepspeed.train_micro_batch_size_per_gpu=4")
        assert entry(other) == 0
        assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_take_the_same_growing_batches(
    fork_server: Any, command: Any, tmp_path: Path
) -> None:
    extra = [*CHANGING, "deepspeed.zero_optimization.stage=1", "data.balance=tokens"]
    assert entry(command("one", *extra)) == 0
    assert fork_server.run(command("two", *extra), 2, output=tmp_path)[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


MODERN = (
    "model.style=modern",
    "model.next_sentence=false",
    "data.pairs=none",
    "model.num_hidden_layers=3",
    "model.global_attn_every_n_layers=2",
    "model.local_attention=8",
)


def test_a_modern_encoder_resumes_bit_equal_and_is_exported(command: Any, tmp_path: Path) -> None:
    from bertds.pretrained.export import export

    extra = [
        *MODERN,
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
        "model.activation_checkpointing=full",
        "schedule.total_steps=3",
    ]
    assert entry(command("whole", *extra)) == 0
    assert [entry(command("broken", *extra, "run.max_hours=0")) for _ in range(3)][-1] == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    # What transformers loads is what was trained; and a run may start from it.
    theirs, info = transformers.ModernBertForMaskedLM.from_pretrained(
        export(tmp_path / "whole", tmp_path / "hf"), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    trained = weights(tmp_path / "whole")["model.layers.2.attn.Wqkv.weight"]
    assert theirs.model.layers[2].attn.Wqkv.weight.flatten().equal(trained.flatten())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "\n- modernbert\n" in card and "A ModernBERT of 3 layers" in card
    more = [*MODERN, f"init.from={tmp_path / 'hf'}"]
    assert entry(command("more", *more, "schedule.total_steps=1", "schedule.warmup_steps=0")) == 0
    assert losses(tmp_path / "more")[0] < losses(tmp_path / "whole")[0]
    # Longer rows may follow shorter ones; another window may not.
    assert (
        entry(
            command(
                "longer",
                *more,
                "model.max_position_embeddings=128",
                "schedule.total_steps=1",
                "schedule.warmup_steps=0",
            )
        )
        == 0
    )
    assert entry(command("other", *more, "model.local_attention=4")) == 2
    assert entry(command("bert", "model.next_sentence=false", f"init.from={tmp_path / 'hf'}")) == 2


@pytest.mark.slow
def test_a_modern_encoder_trains_alike_at_every_stage(
    fork_server: Any, command: Any, tmp_path: Path
) -> None:
    key = "deepspeed.zero_optimization.stage"
    lamb = [*MODERN, "deepspeed.optimizer.type=Lamb"]
    assert entry(command("one", *lamb)) == 0
    for stage in (1, 2, 3):
        two = command(f"two{stage}", *lamb, f"{key}={stage}")
        assert fork_server.run(two, 2, output=tmp_path)[0] == 0
    prompts = read_metrics(tmp_path / "one" / "metrics.jsonl").validation[-1]["prompts"]
    for stage in (1, 2, 3):
        two = read_metrics(tmp_path / f"two{stage}" / "metrics.jsonl").validation[-1]
        assert two["prompts"] == prompts
        assert losses(tmp_path / f"two{stage}") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_what_a_modern_encoder_is_not_made_for(
    command: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert entry(command("run", *MODERN, "run.cuda_graphs=true", "data.pack_tokens=400")) == 2
    assert "run.cuda_graphs=true is not made for model.style=modern" in capfd.readouterr().err


def test_a_run_comes_back_elsewhere(command: Any, tmp_path: Path) -> None:
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
        assert (entry(one) if world_size == 1 else run_ranks(2, [one])[0]) == 75
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
    assert all(len(numbers) == 12 for numbers in samples("whole").values())


def test_phase_two_takes_weights_and_moments_and_restarts_the_schedule(
    command: Any, tmp_path: Path
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


def test_low_precision_trains(command: Any, tmp_path: Path) -> None:
    assert entry(command("fp32")) == 0
    for stage in (1, 2, 3):
        extra = ["deepspeed.bf16.enabled=true", f"deepspeed.zero_optimization.stage={stage}"]
        assert entry(command(f"bf16_{stage}", *extra)) == 0
        assert losses(tmp_path / f"bf16_{stage}") == pytest.approx(
            losses(tmp_path / "fp32"), rel=0.02
        )


def test_three_doors_to_the_data(
    command: Any, tmp_path: Path, tiny_text: Path, tiny_vocab: Path
) -> None:
    text = [f"data.path={tiny_text}", f"data.vocab={tiny_vocab}"]
    arguments = command("text")
    arguments = [a for a in arguments if not a.startswith("data.path=")] + text
    assert entry(arguments) == 0
    assert len(losses(tmp_path / "text")) == 6


def bad(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert entry(command) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if line.startswith("bertds: error:"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.sed=1", "unknown key run.sed (did you mean run.seed?)"),
        ("rum.seed=1", "did you mean"),
        ("nothing.like_it=1", "the sections are checkpoint, data"),
        ("log.xyz=1", "bertds config explain log"),
        ("deepspeed.gradient_cliping=1", "error: --set deepspeed.gradient_cliping is not a key"),
        ("deepspeed.optimizer.params.lr=fast", "--set deepspeed.optimizer.params.lr='fast' must"),
        ("deepspeed.scheduler.type=WarmupLR", "scheduler"),
        ("deepspeed.train_batch_size=13", "nearest that are: train_batch_size=12 or 14"),
        ("deepspeed.optimizer.type=Sgd9", "Sgd9"),
        ("data.path=/does/not/exist", "/does/not/exist"),
        ("init.from=/does/not/exist", "/does/not/exist"),
        ("data.max_predictions_per_sequence=40", "must be below"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, assignment: str, message: str
) -> None:
    arguments = command("run", assignment)
    if assignment.startswith("data.path"):
        arguments = [a for a in arguments if not (a.startswith("data.path=") and a != assignment)]
    assert message in bad(arguments, capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_run_folder_in_use_is_refused(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from bertds.system.folder_lock import FolderLock

    (tmp_path / "run").mkdir()
    with FolderLock(tmp_path / "run", "a training run"):
        assert f"in use by a training run (process {os.getpid()}" in bad(command("run"), capsys)


def test_a_run_whose_folder_was_taken_over_writes_nothing_more(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """As after a lost node: Slurm has started the job elsewhere, the old process still lives."""
    from bertds.system.atomic_files import write_json
    from bertds.training import build

    lock = tmp_path / "run" / ".lock"
    theirs = {"host": "elsewhere", "pid": 1, "start": "1", "job": "77", "purpose": "a run"}
    monkeypatch.setattr(build, "announce", lambda *_, **__: write_json(lock, theirs))
    assert "in use by a run (process 1 on elsewhere, Slurm job 77)" in bad(command("run"), capsys)
    assert json.loads(lock.read_text()) == theirs
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_continued_run_refuses_another_seed_and_another_vocabulary(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_text: Path
) -> None:
    assert entry(command("run", "run.max_hours=0")) == 75
    capsys.readouterr()
    message = bad(command("run", "run.seed=7"), capsys)
    assert "this run began with run.seed=42, now run.seed=7" in message
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    arguments = [a for a in command("run") if not a.startswith("data.path=")]
    message = bad([*arguments, f"data.path={tiny_text}", f"data.vocab={other}"], capsys)
    assert "trained with vocabulary" in message and "(65 tokens)" in message


def test_a_damaged_checkpoint_costs_only_its_steps(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(command("whole")) == 0
    for _ in range(2):
        assert entry(command("run", "run.max_hours=0")) == 75
    newest = step_folders(tmp_path / "run" / "checkpoints")[0] / "rank_00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    capsys.readouterr()
    assert entry(command("run")) == 0
    assert "falling back to" in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_the_launcher_runs_it_from_another_folder(
    command: Any, tmp_path: Path, repository: Path
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


def test_a_stop_signal_to_one_rank_stops_all_with_everything_saved(
    command: Any, tmp_path: Path
) -> None:
    ranks = start_ranks(2, [command("run", "schedule.total_steps=100000")], tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(tmp_path / "run" / "metrics.jsonl").lines:
            assert time.monotonic() < deadline and all(r.poll() is None for r in ranks)
            time.sleep(0.1)
        ranks[1].send_signal(signal.SIGUSR1)
        for rank in ranks:
            assert rank.wait(60) == 0  # the worker's own; the training's codes are printed
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    assert "CODES [75]" in (tmp_path / "rank0.txt").read_text()
    saved = step_folders(tmp_path / "run" / "checkpoints")[0]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl").lines[-1]["step"] == int(saved.name[5:])


def test_without_a_launcher_the_process_is_alone() -> None:
    assert find_place({}).world_size == 1


def test_a_run_of_one_process_needs_no_port(fork_server: Any, command: Any, tmp_path: Path) -> None:
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


def test_a_start_with_other_settings_says_what_changes_or_is_refused(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert entry(command("run", "schedule.total_steps=2")) == 0
    assert entry(command("run", "schedule.total_steps=2")) == 0
    assert "already done" in capsys.readouterr().err
    message = bad(command("run", "schedule.total_steps=2", "deepspeed.optimizer.type=Lamb"), capsys)
    assert "deepspeed.optimizer.type=AdamW, now deepspeed.optimizer.type=Lamb" in message
    same = command("run", "schedule.total_steps=2")
    elsewhere = ["data.path=/nowhere" if a.startswith("data.path=") else a for a in same]
    message = bad(elsewhere, capsys)
    assert message == "bertds: error: data.path=/nowhere: no such file or folder"
    assert (run / "DONE").is_file()
    longer = ("schedule.total_steps=3", "deepspeed.optimizer.params.lr=0.001")
    assert entry(command("run", *longer)) == 0
    error = capsys.readouterr().err
    assert "lr 0.005 -> 0.001 from step 2" in error
    assert "schedule.total_steps 2 -> 3 from step 2" in error
    assert (run / "DONE").is_file() and len(losses(run)) == 3
    starts = [json.loads(line) for line in (run / "settings.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[1]["changes"]["schedule.total_steps"] == [2, 3]


def test_a_learning_rate_changed_on_an_interrupted_run_is_told_everywhere(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, lower = tmp_path / "run", "deepspeed.optimizer.params.lr=0.0001"
    assert entry(command("run", "run.max_hours=1e-6")) == 75
    stopped = int(step_folders(run / "checkpoints")[0].name[5:])
    assert 0 < stopped < 6 and not (run / "DONE").exists()
    capsys.readouterr()
    assert entry(command("run", lower)) == 0
    announced = f"lr 0.005 -> 0.0001 from step {stopped}"
    assert capsys.readouterr().err.count(announced) == 1
    assert announced in (run / "log.txt").read_text()
    starts = [json.loads(line) for line in (run / "settings.jsonl").read_text().splitlines()]
    changed = {"deepspeed.optimizer.params.lr": [0.005, 0.0001]}
    assert [(s["step"], s["changes"]) for s in starts] == [(0, {}), (stopped, changed)]
    rates = [line["lr"] for line in read_metrics(run / "metrics.jsonl").lines if "lr" in line]
    assert max(rates[stopped:]) <= 0.0001 < max(rates[:stopped])
    page = write_report([run], tmp_path / "report").read_text()
    assert "Settings changed" in page and "<td>lr</td>" in page
    card = model_card(open_trained(run), "model")
    assert f"| lr | 0.005 | 0.0001 | {stopped} |" in card
