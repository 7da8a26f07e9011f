from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertds.cli import main
from bertds.pretrained.convert import convert
from bertds.pretrained.open_any import opened
from tests.support.bert_folder import VOCABULARY, assert_equal, weights

FULL = Path("/dev/full")


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


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_named_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = torch.save

    def to_a_full_disk(state: object, place: object) -> None:
        if not hasattr(place, "write"):
            save(state, FULL)
        with FULL.open("wb") as file:
            save(state, file)

    monkeypatch.setattr(torch, "save", to_a_full_disk)
    assert main(["convert", str(folder), str(tmp_path / "dle"), "--to", "dle"]) == 1
    assert f"{tmp_path / 'dle'}: the disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path != folder] == []


def settings_of(folder: Path) -> tuple[int, dict[str, Any]]:
    """The padding token of a Hugging Face folder, and its tokenizer_config.json."""
    pad = json.loads((folder / "config.json").read_text())["pad_token_id"]
    return pad, json.loads((folder / "tokenizer_config.json").read_text())


def test_the_padding_token_is_kept(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": 3}))
    assert main(["convert", str(folder), str(tmp_path / "copy"), "--to", "hf"]) == 0
    assert settings_of(tmp_path / "copy")[0] == 3
    for wrong in (None, "3", True, -1, 31):
        (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": wrong}))
        with opened(folder) as model:
            assert model.pad_token_id == 0
    # Another vocabulary may have its padding elsewhere.
    tokens = [*VOCABULARY[1:5], "[PAD]", "new"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    vocab = ["--vocab", str(tmp_path / "vocab.txt")]
    assert main(["extend", str(folder), str(tmp_path / "other"), *vocab]) == 0
    assert settings_of(tmp_path / "other")[0] == 4


@pytest.mark.parametrize("cased", [False, True])
def test_a_missing_tokenizer_config_is_written_as_the_vocabulary_was_used(
    folder: Path, tmp_path: Path, cased: bool
) -> None:
    """The run knows it best, then ``--cased``, then the vocabulary itself."""
    out = tmp_path / "out"
    upper = [token.replace("w", "W") if cased else token for token in VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(upper) + "\n")
    assert main(["convert", str(folder), str(out), "--to", "hf"]) == 0
    assert settings_of(out)[1]["do_lower_case"] is not cased
    # A vocabulary without upper-case words, whose text kept its case and lost its accents.
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = {"lower_case": not cased, "strip_accents": cased, "chinese_characters": False}
    with opened(folder) as model:
        trained = replace(model, manifest={"tokenizer": tokenizer})
        convert(trained, "hf", out, overwrite=True)
    found = settings_of(out)[1]
    assert (found["do_lower_case"], found["strip_accents"]) == (not cased, cased)
    assert found["tokenize_chinese_chars"] is False
    given = ["--cased"] if cased else []
    assert main(["convert", str(folder), str(out), "--to", "hf", "--overwrite", *given]) == 0
    assert settings_of(out)[1]["do_lower_case"] is not cased


def test_an_export_of_a_hugging_face_folder_has_none_of_its_other_files(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "thesis.tex").write_text("precious")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"label": "old"}))
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "thesis.tex").exists()
    assert "label" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_equal(weights(folder), weights(tmp_path / "out"))


def test_a_byte_level_bpe_without_a_tokenizer_config_keeps_its_special_tokens(
    folder: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz"]
    built = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.add_special_tokens(names[:5])
    (folder / "vocab.txt").unlink()
    built.save(str(folder / "tokenizer.json"))
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "hf"]) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (loaded.pad_token_id, loaded.mask_token_id, len(loaded)) == (1, 4, 31)
    assert loaded("cab")["input_ids"] == [0, 7, 5, 6, 2]


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
