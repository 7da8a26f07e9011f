from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertds
from bertds.cli import main
from bertds.data.model_names import MODELS, hub_id, resolve
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import CheckpointError
from bertds.pretrained.load import load_pretrained
from tests.support.bert_folder import SIZES, write_bert


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--names"]) == 0
    names = capsys.readouterr().out.split()
    for name in (
        "bert-base-uncased",
        "bert-large-uncased",
        "bert-base-cased",
        "bert-large-cased",
        "bertbaseuncased",
        "bertlargeuncased",
        "bert_uncased_L-2_H-128_A-2",
    ):
        assert name in names
    assert sum(name.startswith("bert_uncased_L-") for name in names) == 24
    assert hub_id("bertbaseuncased") == "google-bert/bert-base-uncased"
    assert hub_id("bert-tiny") == "google/bert_uncased_L-2_H-128_A-2"
    assert hub_id("someone/their-bert") == "someone/their-bert"


def test_a_missing_model_says_what_fetches_it(capsys: pytest.CaptureFixture[str]) -> None:
    from bertds.errors import CheckpointError

    with pytest.raises(CheckpointError, match="hf download google-bert/bert-large-uncased"):
        resolve("bertlargeuncased")
    with pytest.raises(CheckpointError, match="did you mean bert-base-uncased"):
        resolve("bert-base-uncase")
    with pytest.raises(CheckpointError, match="no folder or model has this name"):
        resolve("./runs/none")


def small(folder: Path, name: str = "") -> Path:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertForPreTraining(config).save_pretrained(folder / name)
    (folder / name / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne\n")
    return folder / name


def test_aliases_find_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path, "bert-base-uncased")
    monkeypatch.setenv("BERTDS_MODELS", str(tmp_path))
    for name in ("bert-base-uncased", "bertbaseuncased"):
        assert resolve(name) == folder
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert " local " in lines["bert-base-uncased"] and " local " not in lines["bert-large-cased"]
    assert set(MODELS) == set(lines)


def test_training_starts_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """init.from takes what `bertds models` lists; other words are paths, missing ones too."""
    from types import SimpleNamespace

    from bertds.config.load import load_config
    from bertds.errors import CheckpointError
    from bertds.model.bert import BertForPreTraining
    from bertds.training.starting_point import start_weights

    small(tmp_path, "bert-tiny")
    monkeypatch.setenv("BERTDS_MODELS", str(tmp_path))
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    data = {"sequence_length": 16, "max_predictions_per_sequence": 2}
    recipe = {"model": sizes, "data": data}
    tokenizer = SimpleNamespace(vocab_size=10, files={})

    def start(name: str) -> torch.Tensor:
        config = load_config({**recipe, "init": {"from": name}})
        model = BertForPreTraining(config.model, 10)
        assert start_weights(config, model, tokenizer, tmp_path / "none") is None
        return model.state_dict()["bert.pooler.dense.weight"]

    torch.manual_seed(1)
    assert torch.equal(start("bert-tiny"), start(str(tmp_path / "bert-tiny")))
    with pytest.raises(CheckpointError, match="hf download google-bert/bert-base-uncased"):
        start("bertbaseuncased")
    with pytest.raises(CheckpointError, match=r"^runs/none") as refused:
        start("runs/none")
    assert "hub" not in str(refused.value)


def test_a_folder_is_found_in_the_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--someone--x" / "snapshots" / ("a" * 40)
    small(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    assert resolve("someone/x") == snapshot


def test_from_pretrained_gives_transformers_models(tmp_path: Path) -> None:
    folder = small(tmp_path, "m")
    model = bertds.from_pretrained(folder)
    assert type(model).__name__ == "BertForPreTraining"
    classifier = bertds.from_pretrained(str(folder), task="text-classification", num_labels=3)
    assert classifier.num_labels == 3
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(model.state_dict()[name], classifier.state_dict()[name])
    assert bertds.load_tokenizer(folder)("a b")["input_ids"] == [2, 5, 6, 3]
    from bertds.errors import ConfigError

    with pytest.raises(ConfigError, match="task='translation': unknown"):
        bertds.from_pretrained(folder, task="translation")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"cut off", "header"),
        ("config.json", b'{"model_type": "bert"}', "config.json: vocab_size=None, not a number"),
        (
            "config.json",
            json.dumps({**SIZES, "model_type": "bert", "num_hidden_layers": 3}).encode(),
            "the weights have 2 encoder layers",
        ),
    ],
)
def test_a_damaged_folder_is_named_by_both_ways_to_load_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = write_bert(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{folder}.*{message}"):
        load_pretrained(folder)
    if name == "model.safetensors":
        with pytest.raises(CheckpointError, match=f"^{folder}: cannot be loaded as .*{message}"):
            bertds.from_pretrained(folder)


def test_real_weights_load_by_folder(shared_data: Path) -> None:
    model = bertds.from_pretrained(
        shared_data / "model" / "all-MiniLM-L6-v2", task="text-classification", num_labels=2
    )
    assert model.config.num_hidden_layers == 6


def test_importing_bertds_stays_light() -> None:
    code = "import sys, bertds; print('torch' in sys.modules, hasattr(bertds, 'nothing'))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.split() == ["False", "False"]


def test_a_vocabulary_may_be_a_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "models"
    small(own, "bert-base-uncased")
    (tmp_path / "text.txt").write_text("\n\n".join("a b c d e " * n for n in range(60, 80)))
    command = ["prep", "--text", str(tmp_path / "text.txt"), "--validation-fraction", "0"]
    command += ["--workers", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--vocab", "bert-base-uncased"]) == 2
    assert "not in the local cache" in capsys.readouterr().err
    monkeypatch.setenv("BERTDS_MODELS", str(own))
    assert main([*command, "--vocab", "bert-base-uncased"]) == 0
    prepared = tmp_path / "out" / "tokenizer" / "vocab.txt"
    assert prepared.read_text() == (own / "bert-base-uncased" / "vocab.txt").read_text()


def test_convert_and_extend_take_a_models_name_for_its_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "models"
    small(own, "bert-base-uncased")
    monkeypatch.setenv("BERTDS_MODELS", str(own))
    named = own / "bert-base-uncased"
    source, dle = tmp_path / "source", tmp_path / "dle"
    shutil.copytree(named, source)
    assert main(["convert", str(source), str(dle), "--to", "dle"]) == 0
    (dle / "vocab.txt").unlink()
    (bare,) = dle.glob("*.pt")
    tokens = (named / "vocab.txt").read_text()
    (named / "vocab.txt").write_text(tokens.replace("\na\n", "\nqq\n"))  # of another vocabulary
    for command in (
        ["convert", str(bare), str(tmp_path / "convert"), "--to", "hf"],
        ["extend", str(source), str(tmp_path / "extend")],
    ):
        assert main([*command, "--vocab", "bert-base-uncased"]) == 0, capsys.readouterr().err
        written = (tmp_path / command[0] / "vocab.txt").read_text()
        assert written == (named / "vocab.txt").read_text() != tokens
    assert main(["convert", str(bare), str(tmp_path / "x"), "--to", "hf", "--vocab", "no"]) == 2
    assert "--vocab no: no such file" in capsys.readouterr().err


def test_a_vocabulary_needs_no_weights_in_the_cache(tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--google-bert--bert-base-uncased"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    assert load_tokenizer_info("bertbaseuncased").vocab_size == 6
    with pytest.raises(CheckpointError, match="not in the local cache"):
        resolve("bertbaseuncased")


def test_torchaos_noise_is_dropped_and_its_errors_are_not() -> None:
    code = """
import logging
from bertds.pretrained.transformers_api import quiet_torchao
quiet_torchao()
quiet_torchao()
logging.getLogger("torchao").warning("Failed to load _C.so: no such library")
logging.getLogger("torchao").warning("no kernel for this GPU")
pytree = logging.getLogger("torch.utils._pytree")
pytree.warning("%s: Calling register_constant() on Enum subclasses is deprecated and", "x")
pytree.warning("a leaf is not registered")
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stderr.splitlines() == ["no kernel for this GPU", "a leaf is not registered"]


def test_transformers_is_imported_without_torchaos_noise() -> None:
    pytest.importorskip("torchao")
    code = """
from bertds.pretrained.transformers_api import quiet_torchao
quiet_torchao()
import transformers
import torchao
transformers.BertForPreTraining
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
