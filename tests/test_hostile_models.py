"""Models of others: none of their code is run, by no reader, whatever their files ask for."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from bertds.cli import main
from bertds.errors import CheckpointError
from bertds.pretrained.transformers_api import TASK_CLASSES, load_transformers

SIZES = {
    "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "y", "paris", "."]


class Exploit:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.marker),))


def torch_file(path: Path, content: object) -> None:
    torch.save(content, path)


def plain_pickle(path: Path, content: object) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file)


def old_torch_file(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def source_of(reader: str, marker: Path, folder: Path, write) -> Path:
    """A file as a system writes it, with the exploit in the place of its weights."""
    (folder / "bert_config.json").write_text(json.dumps(SIZES))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if reader == "dle":
        write(folder / "ckpt_100.pt", {"model": {"bert.x": Exploit(marker)}, "optimizer": {}})
        return folder / "ckpt_100.pt"
    if reader == "megatron":
        state = {"model": {"language_model": Exploit(marker)}, "checkpoint_version": 3.0}
        write(folder / "model_optim_rng.pt", state)
        return folder / "model_optim_rng.pt"
    if reader == "nemo":
        write(folder / "model_weights.ckpt", {"bert_model.x": Exploit(marker)})
        with tarfile.open(folder / "bert.nemo", "w:gz") as archive:
            archive.add(folder / "model_weights.ckpt", "./model_weights.ckpt")
        return folder / "bert.nemo"
    (folder / "config.json").write_text(json.dumps({**SIZES, "model_type": "bert"}))
    write(folder / "pytorch_model.bin", {"bert.x": Exploit(marker)})
    return folder


@pytest.mark.parametrize("reader", ["dle", "megatron", "nemo", "hugging face"])
@pytest.mark.parametrize("write", [torch_file, old_torch_file, plain_pickle])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_reader_of_pickles_runs_code(tmp_path: Path, capsys, reader: str, write) -> None:
    marker = tmp_path / "marker"
    folder = tmp_path / "given"
    folder.mkdir()
    source = source_of(reader, marker, folder, write)
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert not marker.exists() and not (tmp_path / "out").exists()
    said = "no file of torch.save" if write is plain_pickle else "no code of a checkpoint is run"
    assert said in capsys.readouterr().err
    # The exploit is a real one: whoever unpickles the file has it run.
    with open(next(p for p in folder.iterdir() if p.suffix in (".pt", ".ckpt", ".bin")), "rb") as f:
        if write is plain_pickle:
            pickle.load(f)
        else:
            torch.load(f, weights_only=False)
    assert marker.is_dir()


@pytest.fixture
def with_code(tmp_path: Path) -> tuple[Path, Path]:
    """A Hugging Face folder with a model type, and code, of its own; the marker that it leaves."""
    marker, folder = tmp_path / "marker", tmp_path / "model"
    folder.mkdir()
    code = f"""
import os
os.mkdir({str(marker)!r})
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizer
class C(PretrainedConfig): model_type = "own"
class M(PreTrainedModel): config_class = C
class T(PreTrainedTokenizer): pass
"""
    (folder / "own.py").write_text(code)
    classes = ("Model", "ModelForMaskedLM", "ModelForSequenceClassification",
               "ModelForTokenClassification", "ModelForQuestionAnswering")  # fmt: skip
    auto = {"AutoConfig": "own.C", **{f"Auto{name}": "own.M" for name in classes}}
    config = {**SIZES, "model_type": "own", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder, marker


@pytest.mark.parametrize("task", ["fill-mask", "text-classification", "embeddings"])
def test_a_models_own_code_is_not_run_and_no_text_is_an_answer(
    with_code, task: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = with_code
    texts = io.StringIO("y\ny\ny\n")
    monkeypatch.setattr("sys.stdin", texts)
    command = ["predict", "--task", task, "--model", str(folder), "--input", "-"]
    command += ["--out", str(folder.parent / "out.npy")]
    assert main(command) == 2
    assert not marker.exists()
    assert texts.tell() == 0  # nobody was asked
    printed = capsys.readouterr()
    assert "no code of a model is run, trust_remote_code=False" in printed.err
    assert not printed.out


@pytest.mark.parametrize("name", [*TASK_CLASSES.values(), "AutoTokenizer", "AutoConfig"])
def test_nobody_can_ask_for_a_models_own_code(with_code, name: str) -> None:
    folder, marker = with_code
    with pytest.raises(CheckpointError):
        load_transformers(folder, name, trust_remote_code=True)
    assert not marker.exists()
