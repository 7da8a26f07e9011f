"""Options that would be ignored are refused by every command: nothing asked for is left undone."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import pytest

from bertds.cli import COMMANDS, main
from bertds.system.option_types import finite

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
        (
            [*FINETUNE, "sst2", "--text-column", "t"],
            "--text-column cannot be used with --task sst2",
        ),
        ([*FINETUNE, "glue", "--regression"], "--regression cannot be used with --task glue"),
        (
            [*FINETUNE, "squad", "--null-threshold", "1"],
            "--null-threshold cannot be used with --task squad",
        ),
        ([*FINETUNE, "glue", "--train", "t.csv"], "--train cannot be used with --task glue"),
        ([*FINETUNE, "sst2", "--deepspeed_config", "j", "--weight-decay", "0"], "--weight-decay"),
        (
            ["predict", "--model", "m", "--task", "ner", "--top", "3"],
            "--top can only be used with --task fill-mask",
        ),
        (
            ["predict", "--model", "m", "--task", "fill-mask", "--v2"],
            "--v2 can only be used with --task qa",
        ),
        (["evaluate", "m", "--limit", "3"], "--limit requires --blimp"),
        (
            ["evaluate", "m", "--blimp", "b", "--split", "train"],
            "--split cannot be combined with --blimp",
        ),
        (
            ["evaluate", "m", "--blimp", "b", "--max-samples", "9"],
            "--max-samples cannot be combined",
        ),
        (
            ["checkpoint", "verify", "r", "--out", "o"],
            "--out can only be used with convert, not with verify",
        ),
        (
            ["convert", "s", "o", "--to", "onnx", "--cased"],
            "--cased cannot be combined with --to onnx",
        ),
        (
            ["plan", "--config", "large_phase1", "--sweep", "--nodes", "4"],
            "--nodes cannot be combined",
        ),
        (["status", "r", "--watch", "0"], "--watch 0: must be a number of seconds above 0"),
        (["status", "r", "--watch", "-1"], "--watch -1: must be a number of seconds above 0"),
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
        (["speedrun", "--table", "--target", "3"], "--target cannot be combined with --table"),
        (["convert", "s", "o", "--to", "dle", "--cased"], "--cased cannot be combined with"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("bertds: error: ") and message in said.err
    assert len(said.err.splitlines()) == 1


NUMBERS = [
    ([*FINETUNE, "sst2", "--weight-decay", "-1"], "--weight-decay -1: must be 0 or more"),
    (["predict", "--model", "m", "--task", "ner", "--max-length", "4"], "must be 0 (as in the"),
    (["evaluate", "m", "--batch", "0"], "--batch 0: must be at least 1"),
    (["evaluate", "m", "--max-samples", "-3"], "--max-samples -3: must be at least 0"),
    (["evaluate", "m", "--max-predictions", "0"], "--max-predictions 0: must be at least 1"),
    (["evaluate", "m", "--sequence-length", "0"], "--sequence-length 0: must be at least 1"),
    (["plan", "--config", "small_cpu", "--price", "-2"], "--price -2: must be at least 0"),
    (["plan", "--config", "small_cpu", "--mean-tokens", "0"], "--mean-tokens 0: must be at least"),
    (["plan", "--config", "small_cpu", "--corpus-tokens", "-2"], "--corpus-tokens -2: must be"),
    (["plan", "--config", "small_cpu", "--vocab-size", "0"], "--vocab-size 0: must be at least 1"),
]


@pytest.mark.parametrize(("command", "message"), NUMBERS)
def test_a_number_out_of_range_is_refused(
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1


def numbers_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser and of its actions that take a number with a fraction."""
    found = [action for action in parser._actions if action.type in (float, finite)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for sub in action.choices.values() for inner in numbers_of(sub)]
    return found


def test_no_command_takes_nan_or_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """``float`` reads both, and no comparison with a bound refuses nan."""
    parsers: list[argparse.ArgumentParser] = []

    def remember(self: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", remember)
    modules = [module for module, _ in COMMANDS.values()]
    modules[modules.index("data_prep.build_wiki_books")] = "data_prep.options"
    for module in modules:
        with pytest.raises(SystemExit):
            import_module(module).parse_args([])
    numbers = [action for parser in parsers for action in numbers_of(parser)]
    assert len(parsers) == len(COMMANDS) and len(numbers) >= 15
    assert [action.dest for action in numbers if action.type is not finite] == []
    for text in ("nan", "inf", "-inf", "1e999", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a finite number"):
            finite(text)
    assert finite("1e-3") == 0.001
