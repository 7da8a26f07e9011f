"""Models of others: none of their code is run, by no reader, whatever their files ask for."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from bertds.cli import main
from bertds.errors import CheckpointError
from bertds.pretrained.transformers_api import TASK_CLASSES, load_transformers

SIZES = {
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
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
    said = (
        "not a file written by torch.save"
        if write is plain_pickle
        else "and code in a checkpoint is never run"
    )
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
    classes = (
        "Model",
        "ModelForMaskedLM",
        "ModelForSequenceClassification",
        "ModelForTokenClassification",
        "ModelForQuestionAnswering",
    )
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
    texts = io.TextIOWrapper(io.BytesIO(b"y\ny\ny\n"))
    monkeypatch.setattr("sys.stdin", texts)
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    command = ["predict", "--task", task, "--model", str(folder), "--input", "-"]
    command += ["--out", str(folder.parent / "out.npy")]
    assert main(command) == 2
    assert not marker.exists()
    assert not asked  # the texts are no answers to a question
    printed = capsys.readouterr()
    assert "model code is never run (trust_remote_code=False)" in printed.err
    assert not printed.out


@pytest.mark.parametrize("name", [*TASK_CLASSES.values(), "AutoTokenizer", "AutoConfig"])
def test_no_caller_can_enable_a_models_own_code(with_code, name: str) -> None:
    folder, marker = with_code
    with pytest.raises(CheckpointError):
        load_transformers(folder, name, trust_remote_code=True)
    assert not marker.exists()


def nemo(path: Path, members: dict[str, bytes | int]) -> Path:
    """An archive; a number is a member of as many zeros."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = content if isinstance(content, int) else len(content)
            zeros = isinstance(content, int)
            archive.addfile(info, io.BytesIO(b"\0" * content if zeros else content))
    return path


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"model_weights.ckpt": 80 << 20},
            "'model_weights.ckpt' has 83,886,080 bytes in an archive",
        ),
        (
            {"junk": 80 << 20, "model_weights.ckpt": b""},
            "'junk' has 83,886,080 bytes in an archive",
        ),
        ({"model_config.yaml": 2 << 20}, "'model_config.yaml' has 2,097,152 bytes in an archive"),
        ({"model_config.yaml": ALIASES.encode()}, "more than 100,000 values with its aliases"),
        ({"model_config.yaml": b"[" * 5000}, "nested too deeply"),
    ],
)
def test_a_small_nemo_archive_makes_nothing_huge(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, members: dict, said: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("shutil.copyfileobj", lambda *_: pytest.fail("written before checked"))
    source = nemo(tmp_path / "bert.nemo", members)
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert said in capsys.readouterr().err
    assert not any(scratch.iterdir())


def test_a_pickle_of_one_number_cannot_become_a_tensor_of_billions(tmp_path: Path, capsys) -> None:
    wide = torch.zeros(1).expand(1 << 40)
    torch.save({"bert.embeddings.word_embeddings.weight": wide}, tmp_path / "ckpt.pt")
    (tmp_path / "bert_config.json").write_text(json.dumps(SIZES))
    assert main(["convert", str(tmp_path / "ckpt.pt"), str(tmp_path / "out"), "--to", "hf"]) == 2
    said = capsys.readouterr().err
    assert "has the shape (1099511627776,), and 4 bytes for it" in said


def test_a_packed_file_of_torch_save_is_refused(tmp_path: Path, capsys) -> None:
    torch.save({"a": torch.zeros(20 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "ckpt.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    assert main(["convert", str(tmp_path / "ckpt.pt"), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "bytes, but unpacks to 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1_000_000),
        ("hidden_size", 1 << 24),
        ("intermediate_size", 1 << 40),
        ("vocab_size", 1 << 40),
        ("max_position_embeddings", 1 << 40),
    ],
)
def test_a_configuration_larger_than_the_machine_is_refused(
    tmp_path: Path, capsys, key: str, value: int
) -> None:
    config = {**SIZES, "model_type": "bert", "architectures": ["BertForMaskedLM"], key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save({}, tmp_path / "pytorch_model.bin")
    for command in (
        ["convert", str(tmp_path), str(tmp_path / "out"), "--to", "dle"],
        [
            "predict",
            "--task",
            "fill-mask",
            "--model",
            str(tmp_path),
            "--input",
            str(tmp_path / "vocab.txt"),
        ],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{key}={value}" in said and "GB in float32, but this machine has" in said, said


def test_a_recipe_larger_than_the_machine_is_refused(
    command, capsys, tmp_path: Path, no_launcher: None
) -> None:
    assert main(["train", *command("run", "model.num_hidden_layers=1000000")]) == 2
    assert "model.num_hidden_layers=1000000" in capsys.readouterr().err
