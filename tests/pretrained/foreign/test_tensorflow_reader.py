"""TensorFlow's checkpoints, written here from the description of their format."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bertds.cli import main
from bertds.errors import CheckpointError
from bertds.pretrained.foreign.tensorflow_reader import TensorFlowCheckpoint, masked_crc32c
from bertds.pretrained.open_any import opened
from tests.support.bert_folder import SIZES, VOCABULARY, assert_equal, weights


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
