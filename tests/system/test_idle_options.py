"""Options that would be ignored are refused by every command: nothing asked for is left undone."""

from __future__ import annotations

import pytest

from bertds.cli import main

FINETUNE = ["finetune", "--model", "m", "--out", "o", "--data", "d", "--task"]
PREP = ["prep", "--text", "a.txt", "--out", "o", "--vocab", "v.txt"]
PIPELINE = ["pipeline", "--work", "w", "--books", "b"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            [*FINETUNE, "sst2", "--no-test", "--max-test-rows", "5"],
            "--max-test-rows cannot be combined",
        ),
        ([*FINETUNE, "sst2", "--mnli-data", "d"], "--mnli-data requires --mnli-first"),
        ([*FINETUNE, "sst2", "--text-column", "t"], "--text-column: not for --task sst2"),
        ([*FINETUNE, "squad", "--null-threshold", "1"], "--null-threshold: not for --task squad"),
        ([*FINETUNE, "glue", "--train", "t.csv"], "--train: not for --task glue"),
        ([*FINETUNE, "sst2", "--deepspeed_config", "j", "--weight-decay", "0"], "--weight-decay"),
        (["predict", "--model", "m", "--task", "ner", "--top", "3"], "--top: for --task fill-mask"),
        (["predict", "--model", "m", "--task", "fill-mask", "--v2"], "--v2: for --task qa"),
        (["evaluate", "m", "--limit", "3"], "--limit requires --blimp"),
        (
            ["evaluate", "m", "--blimp", "b", "--split", "train"],
            "--split cannot be combined with --blimp",
        ),
        (
            ["evaluate", "m", "--blimp", "b", "--max-samples", "9"],
            "--max-samples cannot be combined",
        ),
        (["checkpoint", "verify", "r", "--out", "o"], "--out: for convert, not for verify"),
        (
            ["convert", "s", "o", "--to", "onnx", "--cased"],
            "--cased cannot be combined with --to onnx",
        ),
        (
            ["plan", "--config", "large_phase1", "--sweep", "--nodes", "4"],
            "--nodes cannot be combined",
        ),
        (["status", "r", "--watch", "0"], "--watch 0: give a number of seconds above 0"),
        (["status", "r", "--watch", "-1"], "--watch -1: give a number of seconds above 0"),
        (["inspect", "r", "--step", "1", "--limit", "-2"], "--limit -2: must be 0 (all) or more"),
        (["doctor", "--level", "quick"], "--level requires --cluster or --judge"),
        (["doctor", "--judge", "f", "--data", "d"], "--data cannot be combined with --judge"),
        (
            ["train", "--nemo-config", "f", "--write", "d", "--set", "a=b"],
            "--set cannot be combined with",
        ),
        (["train", "--restarts", "2", "--config", "tiny_cpu_phase1"], "--processes=0 --restarts=2"),
        (["ten-minutes", "--text", "t", "--limit", "3"], "--limit requires --blimp"),
        (
            [*PIPELINE, "--vocab", "v", "--train-vocab", "300"],
            "--train-vocab cannot be combined with",
        ),
        ([*PIPELINE, "--prep-arguments", "--wiki", "x"], "--prep-arguments requires --check"),
        ([*PREP, "--hf-split", "train"], "--hf-split requires --hf"),
        ([*PREP, "--text-key", "t"], "--text-key requires --jsonl or --parquet or --hf"),
        ([*PREP, "--dupe-factor", "3"], "--dupe-factor requires --instances"),
        ([*PREP, "--vocab-sample-bytes", "9"], "--vocab-sample-bytes requires --train-vocab"),
        (["export", "r", "--out", "o", "--private"], "--private requires --push"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("bertds: error: ") and message in said.err
    assert len(said.err.splitlines()) == 1
