from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from bertds.cli import main
from bertds.errors import CheckpointError
from bertds.pretrained.foreign.tensorflow_reader import TensorFlowCheckpoint, masked_crc32c
from bertds.pretrained.open_any import opened

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(26))]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random BERT as transformers writes it."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(1)
    model = BertForPreTraining(BertConfig(**SIZES, hidden_act="gelu_new"))
    with torch.no_grad():
        for parameter in model.parameters():  # nothing at its initial 0 or 1
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path / "hf"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if ".decoder." not in name}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


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
def test_a_run_goes_round_bit_equal(
    tiny_data: Path, tiny_recipe: Path, tiny_json: Path, tmp_path: Path
) -> None:
    import os
    import subprocess
    import sys

    from bertds.pretrained.hf_weights import to_transformers_state_dict
    from bertds.pretrained.load import open_trained

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
    original = to_transformers_state_dict(open_trained(tmp_path / "run").model)
    for kind in ("hf", "dle"):
        out = tmp_path / kind
        assert main(["convert", str(tmp_path / "run"), str(out), "--to", kind]) == 0
        source = out if kind == "hf" else next(out.glob("ckpt_*.pt"))
        with opened(source) as back:
            assert_equal(original, to_transformers_state_dict(back.model))
    assert next((tmp_path / "dle").glob("ckpt_*.pt")).name == "ckpt_2.pt"


# --------------------------------------------------------------------------------------------
# TensorFlow's format, written here from its description
# --------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def slow_masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def table(entries: list[tuple[bytes, bytes]], per_block: int = 7) -> bytes:
    """A LevelDB table with shared key prefixes and several blocks."""
    out = b""

    def block(rows: list[tuple[bytes, bytes]]) -> bytes:
        nonlocal out
        body, previous, restarts = b"", b"", []
        for number, (key, value) in enumerate(rows):
            shared = 0
            if number % 3 == 0:
                restarts.append(len(body))
            else:
                while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                    shared += 1
            body += varint(shared) + varint(len(key) - shared) + varint(len(value))
            body += key[shared:] + value
            previous = key
        body += b"".join(struct.pack("<I", r) for r in restarts) + struct.pack("<I", len(restarts))
        handle = varint(len(out)) + varint(len(body))
        out += body + b"\0" + struct.pack("<I", slow_masked_crc(body + b"\0"))
        return handle

    index = []
    for begin in range(0, len(entries), per_block):
        rows = entries[begin : begin + per_block]
        index.append((rows[-1][0], block(rows)))
    meta = block([])
    footer = meta + block(index)
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_tensorflow(prefix: Path, tensors: dict[str, np.ndarray], shards: int = 2) -> None:
    types = {"float32": 1, "int64": 9, "float16": 19}
    data = [b""] * shards
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for number, name in enumerate(sorted(tensors)):
        value = tensors[name]
        raw, shard = value.tobytes(), number % shards
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        entry = field(1, types[str(value.dtype)]) + field(2, shape)
        entry += field(3, shard) if shard else b""
        entry += field(4, len(data[shard])) if data[shard] else b""
        entry += field(5, len(raw)) + bytes([6 << 3 | 5]) + struct.pack("<I", slow_masked_crc(raw))
        data[shard] += raw
        entries.append((name.encode(), entry))
    prefix.with_name(prefix.name + ".index").write_bytes(table(entries))
    for shard, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)


def tensorflow_names(folder: Path) -> dict[str, np.ndarray]:
    """transformers' names back to Google's, by the table of its old converter."""
    tensors = {}
    for name, tensor in weights(folder).items():
        array = tensor.numpy()
        new = name.replace("layer.", "layer_").replace(".", "/")
        if name == "cls.predictions.bias":
            new = "cls/predictions/output_bias"
        elif name.startswith("cls.seq_relationship"):
            new = f"cls/seq_relationship/output_{'weights' if name.endswith('weight') else 'bias'}"
        elif "LayerNorm" in name:
            new = new.replace("/weight", "/gamma").replace("/bias", "/beta")
        elif "_embeddings" in name:
            new = new.removesuffix("/weight")
        elif name.endswith("weight"):
            new, array = new.removesuffix("/weight") + "/kernel", array.T
        tensors[new] = np.ascontiguousarray(array)
    tensors["bert/pooler/dense/kernel/adam_m"] = np.ones((3, 2), np.float32)
    tensors["global_step"] = np.array(7, np.int64)
    return tensors


@pytest.fixture
def tensorflow(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "tf").mkdir()
    write_tensorflow(tmp_path / "tf" / "bert_model.ckpt", tensorflow_names(folder))
    (tmp_path / "tf" / "bert_config.json").write_text(json.dumps({**SIZES, "hidden_act": "gelu"}))
    (tmp_path / "tf" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path / "tf"


def test_crc32c_of_the_published_examples() -> None:
    # RFC 3720, B.4: 32 bytes of zeros, of ones.
    for data, crc in (
        (b"\0" * 32, 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (b"123456789", 0xE3069283),
    ):
        expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert masked_crc32c(data) == expected == slow_masked_crc(data)


def test_a_tensorflow_checkpoint_is_read(folder: Path, tensorflow: Path, tmp_path: Path) -> None:
    for number, source in enumerate(
        (tensorflow, tensorflow / "bert_model.ckpt", tensorflow / "bert_model.ckpt.index")
    ):
        assert main(["convert", str(source), str(tmp_path / f"out{number}"), "--to", "hf"]) == 0
        assert_equal(weights(folder), weights(tmp_path / f"out{number}"))
    assert json.loads((tmp_path / "out0" / "config.json").read_text())["hidden_act"] == "gelu_new"
    checkpoint = TensorFlowCheckpoint(tensorflow / "bert_model.ckpt")
    assert checkpoint.read("global_step") == 7 and checkpoint.read("global_step").shape == ()

    from transformers import BertForPreTraining

    ids = torch.tensor([[2, 7, 4, 9, 3]])
    models = [BertForPreTraining.from_pretrained(p).eval() for p in (folder, tmp_path / "out0")]
    logits = [model(input_ids=ids).prediction_logits for model in models]
    assert torch.equal(*logits)


def test_damage_and_other_files_are_refused(tensorflow: Path, tmp_path: Path) -> None:
    data = tensorflow / "bert_model.ckpt.data-00001-of-00002"
    raw = bytearray(data.read_bytes())
    raw[11] ^= 1
    data.write_bytes(raw)
    with (
        pytest.raises(CheckpointError, match=r"data-00001-of-00002: .* is damaged"),
        opened(tensorflow),
    ):
        pass
    index = tensorflow / "bert_model.ckpt.index"
    for change in (5, -60):
        good = index.read_bytes()
        bad = bytearray(good)
        bad[change] ^= 1
        index.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"bert_model\.ckpt\.index: damaged"):
            TensorFlowCheckpoint(tensorflow / "bert_model.ckpt")
        index.write_bytes(good)
    index.write_bytes(b"no table" * 20)
    with pytest.raises(CheckpointError, match="not the index of a TensorFlow checkpoint"):
        TensorFlowCheckpoint(tensorflow / "bert_model.ckpt")


# --------------------------------------------------------------------------------------------
# NeMo and Megatron
# --------------------------------------------------------------------------------------------


def test_a_nemo_archive_is_read(folder: Path, tmp_path: Path) -> None:
    state = {}
    for name, tensor in weights(folder).items():
        new = name.replace("bert.", "bert_model.", 1) if name.startswith("bert.") else name
        new = new.replace("cls.predictions.transform.dense", "mlm_classifier.dense")
        new = new.replace("cls.predictions.transform.LayerNorm", "mlm_classifier.norm")
        if name.startswith("cls.seq_relationship"):
            new = name.replace("cls.seq_relationship", "nsp_classifier.mlp.layer2")
        state["mlm_classifier.mlp.layer0.bias" if name == "cls.predictions.bias" else new] = tensor
    state["mlm_classifier.mlp.layer0.weight"] = state[
        "bert_model.embeddings.word_embeddings.weight"
    ].clone()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    config = yaml.safe_dump({"language_model": {"config": SIZES}}).encode()
    with tarfile.open(tmp_path / "bert.nemo", "w:gz") as archive:
        for name, content in (
            ("./model_weights.ckpt", buffer.getvalue()),
            ("./model_config.yaml", config),
            ("../../abc_vocab.txt", "\n".join(VOCABULARY).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert main(["convert", str(tmp_path / "bert.nemo"), str(tmp_path / "out"), "--to", "hf"]) == 0
    expected = {
        n: t for n, t in weights(folder).items() if not n.startswith(("cls.seq", "bert.pooler"))
    }
    found = weights(tmp_path / "out")
    assert_equal(expected, {name: found[name] for name in expected})
    assert (tmp_path / "out" / "vocab.txt").is_file()


@pytest.mark.parametrize("version", [1.0, 3.0])
def test_megatron_becomes_transformers_megatron_bert(tmp_path: Path, version: float) -> None:
    from transformers import MegatronBertConfig, MegatronBertForPreTraining

    torch.manual_seed(2)
    config = MegatronBertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5)
    model = MegatronBertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    own = model.state_dict()
    state = {}
    root = "model.language_model."
    for name in ("word", "position"):
        state[f"{root}embedding.{name}_embeddings.weight"] = own[
            f"bert.embeddings.{name}_embeddings.weight"
        ]
    state[f"{root}embedding.tokentype_embeddings.weight"] = own[
        "bert.embeddings.token_type_embeddings.weight"
    ]
    padding = torch.zeros(97, 16)
    key = f"{root}embedding.word_embeddings.weight"
    state[key] = torch.cat([state[key], padding])
    for kind in ("weight", "bias"):
        for layer in range(2):
            ours, theirs = f"bert.encoder.layer.{layer}.", f"{root}encoder.layers.{layer}."
            parts = [own[f"{ours}attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            if version >= 2:  # [heads, 3, width]
                split = [part.view(2, 1, 8, *part.shape[1:]) for part in parts]
                joint = torch.cat(split, dim=1).reshape(48, *parts[0].shape[1:])
            else:
                joint = torch.cat(parts)
            state[f"{theirs}self_attention.query_key_value.{kind}"] = joint
            for a, b in (
                ("attention.ln", "input_layernorm"),
                ("ln", "post_attention_layernorm"),
                ("attention.output.dense", "self_attention.dense"),
                ("intermediate.dense", "mlp.dense_h_to_4h"),
                ("output.dense", "mlp.dense_4h_to_h"),
            ):
                state[f"{theirs}{b}.{kind}"] = own[f"{ours}{a}.{kind}"]
        state[f"{root}encoder.final_layernorm.{kind}"] = own[f"bert.encoder.ln.{kind}"]
        state[f"{root}pooler.dense.{kind}"] = own[f"bert.pooler.dense.{kind}"]
        state[f"model.lm_head.dense.{kind}"] = own[f"cls.predictions.transform.dense.{kind}"]
        state[f"model.lm_head.layernorm.{kind}"] = own[
            f"cls.predictions.transform.LayerNorm.{kind}"
        ]
        state[f"model.binary_head.{kind}"] = own[f"cls.seq_relationship.{kind}"]
    state["model.lm_head.bias"] = torch.cat([own["cls.predictions.bias"], padding[:, 0]])
    nested = {"state_dict": state, "checkpoint_version": version}
    torch.save(nested, tmp_path / "model.ckpt")
    (tmp_path / "bert_config.json").write_text(json.dumps({"num_attention_heads": 2}))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    assert main(["convert", str(tmp_path / "model.ckpt"), str(tmp_path / "out"), "--to", "hf"]) == 0
    loaded = MegatronBertForPreTraining.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    for left, right in zip(model(input_ids=ids).to_tuple(), loaded(input_ids=ids).to_tuple()):
        assert torch.allclose(left, right, atol=1e-6)


# --------------------------------------------------------------------------------------------
# Refusals
# --------------------------------------------------------------------------------------------


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


def test_settings_and_random_state_beside_the_weights_do_no_harm(
    folder: Path, tmp_path: Path
) -> None:
    """Megatron's files hold an ``argparse.Namespace`` and numpy's random state."""
    extra = {"args": argparse.Namespace(lr=1e-4), "rng": np.random.RandomState(0).get_state()}
    torch.save({"model": weights(folder), **extra}, tmp_path / "model.pt")
    shutil.copy(folder / "vocab.txt", tmp_path / "words.txt")
    assert (
        main(
            [
                "convert",
                str(tmp_path / "model.pt"),
                str(tmp_path / "out"),
                "--to",
                "hf",
                "--config",
                str(folder / "config.json"),
                "--vocab",
                str(tmp_path / "words.txt"),
            ]
        )
        == 0
    )
    assert_equal(weights(folder), weights(tmp_path / "out"))
    copied = (tmp_path / "out" / "vocab.txt").read_text()
    assert copied == (folder / "vocab.txt").read_text()


def test_what_is_left_out_is_named(
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


def test_onnx_without_its_packages_says_what_to_install(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "pip install 'bertds[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime as runtime
    from transformers import BertForPreTraining

    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "onnx"]) == 0
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert {tuple(i.shape) for i in session.get_inputs()} == {("batch", "sequence")}
    assert all(o.shape[:1] == ["batch"] for o in session.get_outputs())
    ids = np.array([[2, 7, 4, 9, 3, 5, 6], [2, 8, 3, 0, 0, 0, 0]])
    mask = (ids != 0).astype(np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (logits,) = session.run(None, inputs)
    model = BertForPreTraining.from_pretrained(folder).eval()
    expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    expected = expected.prediction_logits.detach().numpy()
    assert np.allclose(logits[mask == 1], expected[mask == 1], atol=1e-4)
    assert "logits: differs from torch by at most" in capsys.readouterr().out
