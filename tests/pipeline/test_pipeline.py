"""What the pipeline refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from bertds.commands.pipeline import main
from bertds.config.load import load_config, to_dict
from bertds.data.sources.token_source import TokenSource
from bertds.errors import ConfigError, DataError, UserError
from bertds.pipeline.stages import export_model, score_phases
from bertds.pipeline.summary import close
from bertds.system.shipped_files import PACKAGE, shipped_folder
from bertds.train import entry as train_entry
from data_prep import build_wiki_books


def test_another_corpus_in_the_same_folder_is_refused_by_the_pipeline(
    tmp_path: Path,
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("A line of one. And of two.\n\n" * 40)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nline\n")
    work = tmp_path / "work"
    command = ["--books", str(books), "--vocab", str(vocab)]
    prepare = [*command, "--out", str(work / "data"), "--validation-fraction", "0"]
    assert build_wiki_books.main(prepare) == 0
    with pytest.raises(
        DataError, match=r"0\.05 now.*choose another folder with --work DIR"
    ) as refusal:
        main(["--work", str(work), *command])
    assert "--overwrite" not in str(refusal.value)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparation that must not begin."""

    def begin(*_: object) -> None:
        raise AssertionError("preparation has begun")

    monkeypatch.setattr("bertds.commands.pipeline.prepare", begin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phase2", "no_such_recipe"], "no_such_recipe: no such recipe"),
        (["--phase2", "p2.yaml"], "schedule.total_stepz"),
        (["--phase2", "json.yaml"], "no_such.json: no such DeepSpeed JSON"),
        (["--phase2", "wider.yaml"], "phase1: its hidden_size is 128, this run's is 256"),
        (["--phase2", "large_phase2"], "phase1: its hidden_size is 128, this run's is 1024"),
        (["--phase1", "large_phase1", "--phase2", "large_phase2"], "this JSON is for GPUs"),
        (["--processes", "7"], "train_batch_size"),
        (["--vocab", "broken.txt"], "broken.txt"),
        (["--set", "data.sequence_lenght=64"], "data.sequence_lenght"),
        (["--set", "run.dir=elsewhere"], "--set run.dir=elsewhere: this command sets run.dir"),
        (["--set", "init.from=bert"], "--set init.from=bert: this command sets init.from"),
        (["--work", "book.txt"], "--work book.txt: is a file; choose a folder"),
    ],
)
def test_errors_of_a_later_stage_are_reported_before_the_first(
    tmp_path: Path,
    options: list[str],
    message: str,
    untouched: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "this JSON is for GPUs" in message and torch.cuda.is_available():
        pytest.skip("these recipes train here")
    monkeypatch.chdir(tmp_path)
    second = (PACKAGE / "recipes" / "tiny_cpu_phase2.yaml").read_text()
    (tmp_path / "p2.yaml").write_text(second.replace("total_steps", "total_stepz"))
    json = re.sub(r"deepspeed_config: .*", "deepspeed_config: no_such.json", second)
    (tmp_path / "json.yaml").write_text(json)
    wider = re.sub(r"hidden_size: \d+", "hidden_size: 256", second)
    (tmp_path / "wider.yaml").write_text(wider)
    (tmp_path / "broken.txt").write_text("the\n")
    (tmp_path / "book.txt").write_text("A line.\n")
    with pytest.raises(UserError) as refusal:
        main(["--work", "work", "--books", "book.txt", *options])
    assert message in str(refusal.value)


def test_a_foreign_model_folder_and_a_changed_run_are_refused_first(
    tmp_path: Path, untouched: None
) -> None:
    work = tmp_path / "work"
    command = ["--work", str(work), "--books", str(tmp_path)]
    (work / "model").mkdir(parents=True)
    (work / "model" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="model: exists and is not an earlier export"):
        main(command)
    (work / "model" / "thesis.tex").unlink()
    config = load_config("tiny_cpu_phase2", {"run.seed": 7})
    (work / "phase2").mkdir()
    (work / "phase2" / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    with pytest.raises(ConfigError, match=r"phase2: this run started with run\.seed=7"):
        main(command)
    with pytest.raises(AssertionError, match="preparation has begun"):
        main([*command, "--set", "run.seed=7"])
    (work / "phase2" / "DONE").write_text('{"step": 200}')
    with pytest.raises(
        ConfigError, match=r"phase2: this run is done at step 200, so .*total_steps"
    ):
        main([*command, "--set", "run.seed=7", "schedule.total_steps=90"])


RECIPES = ["--phase1", "tiny_cpu_phase1", "--phase2", "tiny_cpu_phase2"]
LARGE = ["--phase1", "large_phase1", "--phase2", "large_phase2"]
PREPARED = ["--prep-arguments", "--wiki", "dump.xml.bz2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phase1", "large_phase1", "--phase2", "tiny_cpu_phase2"], "its hidden_size is 1024"),
        ([*RECIPES, "--phase2-json", "no_such.json"], "no_such.json: no such DeepSpeed JSON"),
        ([*LARGE, "--processes", "7"], "train_batch_size=65536 is not a multiple"),
        ([*RECIPES, *PREPARED, "--vocab", "v.txt"], "v.txt: cannot be read"),
        ([*RECIPES, *PREPARED], "give either --vocab FILE or --train-vocab N"),
    ],
)
def test_training_elsewhere_is_checked_too(
    tmp_path: Path,
    options: list[str],
    message: str,
    untouched: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, SystemExit)) as refusal:
        main(["--check", "--work", "work", *options])
    assert message in f"{refusal.value}{capsys.readouterr().err}"


def test_a_check_starts_nothing_and_needs_neither_gpus_nor_sources(
    tmp_path: Path, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(
        (shipped_folder("ds_configs") / "tiny_cpu_phase1.json").read_text()
    )
    check = ["--check", "--work", "work"]
    assert main([*check, *LARGE, *PREPARED, "--train-vocab", "3000"]) == 0
    assert main([*check, *LARGE]) == 0  # the corpus is prepared already
    assert main([*check, "--phase1-json", "tiny.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]


def test_a_missing_key_of_a_tracker_is_reported_before_preparation(
    tmp_path: Path, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertds.monitor.trackers.find_spec", lambda name: None)
    command = ["--work", str(tmp_path / "work"), "--books", str(tmp_path)]
    with pytest.raises(ConfigError, match="tensorboard=true requires the package tensorboard"):
        main([*command, "--set", "tracking.tensorboard=true"])


def test_a_corpus_without_held_out_text_ends_without_scores(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(TokenSource, "held_out", lambda _: None)
    assert train_entry(command("target", "validation.stop_at_loss=4.0")) == 2
    assert "validation.stop_at_loss=4.0: " in capsys.readouterr().err
    assert train_entry(command("run", "schedule.total_steps=2")) == 0
    run = tmp_path / "run"
    scores = score_phases([run], tmp_path / "scores.json", None)
    assert set(scores) == {"stamp", "prompts"} and scores["prompts"] == []
    close(tmp_path, [run], scores)
    out, err = capsys.readouterr()
    assert "No text was held out, so the model was not scored." in out
    assert f"{run}: no held-out text to score" in err


def test_a_run_that_was_trained_again_is_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Path] = []
    monkeypatch.setattr(
        "bertds.pretrained.export.export", lambda run, model, **_: exported.append(model)
    )
    run, model = tmp_path / "run", tmp_path / "model"
    (run / "checkpoints" / "step_00000002").mkdir(parents=True)
    model.mkdir()
    for seconds, file in (
        (1, run / "DONE"),
        (2, model / "bertds_export.json"),
    ):
        file.write_text('{"origin": "step_00000002"}')
        os.utime(file, (seconds, seconds))
    export_model(run, model)
    assert not exported
    os.utime(run / "DONE", (3, 3))  # removed, and trained again for as many steps
    export_model(run, model)
    assert exported == [model]
