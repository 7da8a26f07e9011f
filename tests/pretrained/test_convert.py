from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bertds.cli import main
from bertds.pretrained.open_any import opened
from tests.support.bert_folder import assert_equal, weights


def test_hugging_face_and_dle_round_trips_are_bit_equal(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "copy"), "--to", "hf"]) == 0
    assert_equal(weights(folder), weights(tmp_path / "copy"))
    assert main(["convert", str(folder), str(tmp_path / "dle"), "--to", "dle"]) == 0
    saved = torch.load(tmp_path / "dle" / "ckpt_0.pt", weights_only=True)
    assert set(saved) == {"model", "optimizer", "epoch"}
    assert saved["model"]["bert.embeddings.word_embeddings.weight"].shape == (32, 16)  # 31 padded
    assert "bert.pooler.dense_act.weight" in saved["model"]
    assert (
        main(["convert", str(tmp_path / "dle" / "ckpt_0.pt"), str(tmp_path / "back"), "--to", "hf"])
        == 0
    )
    assert_equal(weights(folder), weights(tmp_path / "back"))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["hidden_act"] == "gelu_new" and config["vocab_size"] == 31


@pytest.mark.slow
def test_a_round_trip_of_a_run_is_bit_equal(
    tiny_data: Path, tiny_recipe: Path, tiny_json: Path, tmp_path: Path
) -> None:
    import os
    import subprocess
    import sys

    from bertds.pretrained.hf_weights import to_transformers_state_dict
    from bertds.pretrained.load import load_pretrained

    command = [
        sys.executable,
        "-m",
        "bertds.cli",
        "train",
        "--config",
        str(tiny_recipe),
        "--deepspeed_config",
        str(tiny_json),
        "--set",
        f"run.dir={tmp_path / 'run'}",
        f"data.path={tiny_data}",
        "schedule.total_steps=2",
        "schedule.warmup_steps=0",
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    original = to_transformers_state_dict(load_pretrained(tmp_path / "run").model)
    for kind in ("hf", "dle"):
        out = tmp_path / kind
        assert main(["convert", str(tmp_path / "run"), str(out), "--to", kind]) == 0
        source = out if kind == "hf" else next(out.glob("ckpt_*.pt"))
        with opened(source) as back:
            assert_equal(original, to_transformers_state_dict(back.model))
    assert next((tmp_path / "dle").glob("ckpt_*.pt")).name == "ckpt_2.pt"


class Hostile:
    def __reduce__(self) -> tuple:
        return (print, ("this must never be printed",))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Hostile()}, tmp_path / "ckpt_1.pt")
    assert main(["convert", str(tmp_path / "ckpt_1.pt"), str(tmp_path / "out"), "--to", "hf"]) == 2
    printed = capsys.readouterr()
    assert "this must never be printed" not in printed.out
    assert "ckpt_1.pt: cannot be read as weights (it needs" in printed.err
    assert "and code in a checkpoint is never run" in printed.err
    assert not (tmp_path / "out").exists()


def test_settings_and_random_state_next_to_the_weights_are_ignored(
    folder: Path, tmp_path: Path
) -> None:
    """Megatron's files hold an ``argparse.Namespace`` and numpy's random state."""
    extra = {"args": argparse.Namespace(lr=1e-4), "rng": np.random.RandomState(0).get_state()}
    torch.save({"model": weights(folder), **extra}, tmp_path / "model.pt")
    shutil.copy(folder / "vocab.txt", tmp_path / "words.txt")
    files = ["--config", str(folder / "config.json"), "--vocab", str(tmp_path / "words.txt")]
    paths = [str(tmp_path / "model.pt"), str(tmp_path / "out")]
    assert main(["convert", *paths, "--to", "hf", *files]) == 0
    assert_equal(weights(folder), weights(tmp_path / "out"))
    copied = (tmp_path / "out" / "vocab.txt").read_text()
    assert copied == (folder / "vocab.txt").read_text()


def test_omitted_tensors_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head of a fine-tuned model has no place in a pre-training model."""
    from transformers import BertForTokenClassification

    BertForTokenClassification.from_pretrained(folder).save_pretrained(tmp_path / "tuned")
    shutil.copy(folder / "vocab.txt", tmp_path / "tuned")
    assert main(["convert", str(tmp_path / "tuned"), str(tmp_path / "out"), "--to", "hf"]) == 0
    printed = capsys.readouterr().out
    assert "omitted, not part of this model: classifier.weight" in printed
    assert (
        "not in the source, initialized at random: cls.predictions.transform.dense.weight"
        in printed
    )


def test_bad_input_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights_file = tmp_path / "lone" / "ckpt_1.pt"
    weights_file.parent.mkdir()
    torch.save({"model": weights(folder)}, weights_file)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    for arguments, message in (
        ([str(weights_file), "out", "--to", "hf"], "bert_config.json is missing"),
        (
            [str(weights_file), "out", "--to", "hf", "--config", str(folder / "config.json")],
            "vocab.txt is missing; give --vocab FILE",
        ),
        ([str(folder), str(tmp_path / "full"), "--to", "dle"], "not an earlier export"),
        (
            [str(folder), "out", "--to", "hf", "--vocab", str(folder / "vocab.txt")],
            "already includes one",
        ),
        (["no/such/path", "out", "--to", "hf"], "no folder or model has this name"),
        (["there/ckpt_1.pt", "out", "--to", "hf"], "there/ckpt_1.pt: no such file"),
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"
