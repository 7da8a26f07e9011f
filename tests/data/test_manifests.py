"""Manifests of data and of checkpoints that say something impossible are refused by the key."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from bertds.checkpoint.format import CheckpointReader, write_manifest, write_pieces
from bertds.checkpoint.train_state import TrainState
from bertds.cli import main
from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from bertds.engine.state_pieces import Piece
from bertds.errors import CheckpointError, DataError

SHAPES = {"a.weight": [3, 4], "b.bias": [5]}


def write_checkpoint(
    folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None
) -> Path:
    """A checkpoint of two pieces per tensor and kind, its manifest changed, checksums that fit."""
    folder.mkdir(parents=True)
    pieces = [
        Piece(name, kind, start, torch.arange(start, end, dtype=torch.float32))  # type: ignore[arg-type]
        for name, size in (("a.weight", 12), ("b.bias", 5))
        for kind in ("weight", "exp_avg", "exp_avg_sq")
        for start, end in ((0, 2), (2, size))
    ]
    record, records = write_pieces(folder, 0, pieces)
    manifest: dict[str, Any] = {
        "step": 3,
        "state": TrainState(step=3, best_mlm_loss=2.5).state_dict(),
        "engine": {},
        "optimizer_steps": 3,
        "world_size": 1,
        "model": {},
        "tokenizer": {},
        "shapes": copy.deepcopy(SHAPES),
        "files": [{"file": record.file, "bytes": record.bytes, "sha256": record.sha256}],
        "pieces": [list(piece) for piece in records],
    }
    change(manifest)
    write_manifest(folder, manifest)
    return folder


def at_piece(number: int, place: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["pieces"][number].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: m["pieces"].append(["rank_00000.safetensors", "k", "b.bias", "weight", 1, 2]),
            r"elements 1 to 1 of weight b\.bias are listed twice",
        ),
        (at_piece(1, 4, 1), r"elements 1 to 1 of weight a\.weight are listed twice"),
        (at_piece(1, 4, 3), r"elements 2 to 2 of weight a\.weight are missing"),
        (lambda m: m["pieces"].pop(), r"2 elements of exp_avg_sq b\.bias, but its shape has 5"),
        (lambda m: m["pieces"].clear(), r"0 elements of weight a\.weight, but its shape has 12"),
        (
            lambda m: m["pieces"].append(m["pieces"][0]),
            r"pieces\[12\] is .*must be a piece that is not listed yet",
        ),
        (at_piece(0, 5, -2), r"pieces\[0\] is .*whose start and length are 0 or more"),
        (
            at_piece(0, 5, 2**40),
            r"rank_00000\.safetensors has [\d,]+ bytes, but its pieces add up to 4,398",
        ),
        (at_piece(0, 0, "other"), r"pieces\[0\] .*one of the files in the list of files"),
        (at_piece(0, 3, "momentum"), r"pieces\[0\] .*of kind weight, exp_avg, exp_avg_sq"),
        (at_piece(0, 4, True), r"pieces\[0\] .*\[file, key, name, kind, start, length\]"),
        (lambda m: m["files"][0].update(file="../outside"), r"files\[0\]\.file is '\.\./outside'"),
        (lambda m: m["files"][0].update(file="/etc/passwd"), r"files\[0\]\.file is '/etc/passwd'"),
        (
            lambda m: m["files"][0].update(bytes=-1),
            r"files\[0\]\.bytes is -1: must be a whole number",
        ),
        (lambda m: m["files"][0].update(sha256=""), r"files\[0\]\.sha256 is .*a SHA-256"),
        (lambda m: m["files"].append(m["files"][0]), r"files\[1\]\.file .*listed only once"),
        (lambda m: m["shapes"].update({"b.bias": [5, "x"]}), r"shapes\.b\.bias\[1\] is \"x\""),
        (
            lambda m: m["shapes"].update({"b.bias": [2**40, 2**40]}),
            "a shape whose tensor fits into a file",
        ),
        (lambda m: m["state"].update(step="3"), r"state\.step is \"3\": must be a whole number"),
        (lambda m: m["state"].update(window=[None]), r"state\.window is .*a list of numbers"),
        (lambda m: m["state"].pop("epoch"), "missing or unknown fields epoch"),
        (lambda m: m.update(step=4), "step is 4: must be 3, as state.step"),
        (lambda m: m.pop("optimizer_steps"), "the key 'optimizer_steps' is missing"),
        (lambda m: m.update(world_size=0), "world_size is 0: must be a whole number, 1 or more"),
        (lambda m: m.update(engine={"cur_scale": "x"}), r"engine\.cur_scale is \"x\": must be a"),
        (lambda m: m.update(model={"vocab_size": 31, "hidden_size": "w"}), "model.hidden_size='w'"),
        (lambda m: m.update(model={"vocab_size": 0}), r"model\.vocab_size is 0"),
        (lambda m: m.update(recipe=[]), r"recipe is \[\]: must be an object"),
    ],
)
def test_a_checkpoint_with_impossible_values_is_refused(
    tmp_path: Path, capsys, change, said
) -> None:
    folder = write_checkpoint(tmp_path / "step_00000003", change)
    with pytest.raises(CheckpointError, match=said):
        CheckpointReader(folder)
    out = tmp_path / "out"
    command = ["checkpoint", "convert", str(folder), "--to", "weights", "--out", str(out)]
    assert main(command) == 2
    assert "manifest.json" in capsys.readouterr().err and not (out / "model.safetensors").exists()


def test_a_checkpoint_is_read_as_written(tmp_path: Path) -> None:
    reader = CheckpointReader(write_checkpoint(tmp_path / "step_00000003"))
    weights = dict(reader.weights())
    assert torch.equal(weights["a.weight"].flatten(), torch.arange(12.0))
    assert torch.equal(weights["b.bias"], torch.arange(5.0))
    # A loss that was not finite leaves NaN in the window of sums: the checkpoint is still read.
    odd = write_checkpoint(
        tmp_path / "nan/step_00000003", lambda m: m["state"].update(window=[float("nan")])
    )
    assert CheckpointReader(odd).manifest["state"]["window"]


def test_a_link_out_of_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step_00000003")
    data = folder / "rank_00000.safetensors"
    data.rename(tmp_path / "outside")
    data.symlink_to(tmp_path / "outside")
    with pytest.raises(
        CheckpointError, match=r"files\[0\]\.file .*points outside .* through a link"
    ):
        CheckpointReader(folder)


def test_a_piece_whose_length_differs_from_its_file_is_refused(tmp_path: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        """The lengths of both pieces still add up."""
        manifest["pieces"][0][5], manifest["pieces"][1][4:] = 3, [3, 9]

    reader = CheckpointReader(write_checkpoint(tmp_path / "step_00000003", swap))
    with pytest.raises(CheckpointError, match=r"is F32 \[2\], but the manifest says F32 \[3\]"):
        dict(reader.weights())


@pytest.fixture
def data(tmp_path: Path, tiny_vocab: Path) -> Path:
    from tests.support.tiny import write_tiny_data

    return write_tiny_data(tmp_path / "data", tiny_vocab)


def special(**ids: int) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["tokenizer"]["special_ids"].update(ids)


def shard(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["splits"]["train"]["shards"][0].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (special(mask=0, sep=5), r"special_ids is .*five different ids"),
        (special(sep=5), r"special_ids\.sep is 5: must be 3, the id of \[SEP\] in .*vocab\.txt"),
        (special(mask=65), r"special_ids\.mask is 65: must be a whole number from 0 to 64"),
        (special(mask=True), r"special_ids\.mask is true"),
        (special(extra=1), r"unknown key 'tokenizer\.special_ids\.extra'"),
        (
            lambda m: m["tokenizer"].update(vocab_size=64),
            r"tokenizer\.vocab_size is 64: must be 65",
        ),
        (
            lambda m: m["tokenizer"].update(vocab_size=2**40),
            r"tokenizer\.vocab_size is 1099511627776",
        ),
        (lambda m: m["tokenizer"].update(lower_case=1), r"lower_case is 1: must be true or false"),
        (
            lambda m: m["tokenizer"].update(fingerprint="x"),
            r"fingerprint is \"x\": must be a SHA-256",
        ),
        (shard(file="../../outside.h5"), r"shards\[0\]\.file is '\.\./\.\./outside\.h5'"),
        (shard(file="/etc/passwd"), r"shards\[0\]\.file is '/etc/passwd'"),
        (shard(file=None), r"shards\[0\]\.file is None"),
        (shard(bytes="7"), r"shards\[0\]\.bytes is \"7\""),
        (shard(sha256=7), r"shards\[0\]\.sha256 is 7"),
        (shard(documents=0), r"shards\[0\]\.documents is 0: must be a whole number, 1 or more"),
        (shard(tokens=2**62), r"shards\[0\]\.tokens is .*: must be at most"),
        (shard(tokens=1), r"one token per sentence"),
        (
            lambda m: m["splits"]["train"]["shards"].append(m["splits"]["train"]["shards"][0]),
            r"names each file once",
        ),
        (lambda m: m["documents"].update(dropped={"empty": "2"}), r"dropped\.empty is \"2\""),
        (lambda m: m.update(sources=[{"name": 7}]), r"sources\[0\]\.name is 7: must be text"),
        (
            lambda m: m.update(instances=[{"folder": "f", "dataset": "d", "sequence_length": -1}]),
            r"instances\[0\]\.sequence_length is -1",
        ),
        (lambda m: m.update(later=1), "unknown key 'later'"),
    ],
)
def test_a_data_manifest_with_impossible_values_is_refused(data: Path, change, said: str) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"manifest\.json: .*({said})"):
        Manifest.load(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"format": NaN}',
        "[" * 5000,
        '{"format": "bertds-token-shards"',
        "[]",
    ],
)
def test_a_manifest_that_is_not_a_json_object_is_refused(data: Path, text: str) -> None:
    (data / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: (damaged|not a JSON object)"):
        Manifest.load(data)


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(data: Path) -> None:
    (data / "manifest.json").unlink()
    (data / "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read \(Is a directory\)"):
        Manifest.load(data)


def test_a_token_beyond_the_vocabulary_is_found(data: Path) -> None:
    manifest = Manifest.load(data)
    info = manifest.splits["train"].shards[0]
    path = data / info.file
    with h5py.File(path, "r+") as file:
        file["token_ids"][3] = 65
    size, checksum = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    forged = type(info)(
        **{**{k: getattr(info, k) for k in info.__slots__}, "bytes": size, "sha256": checksum}
    )
    with pytest.raises(
        DataError, match=r"contains token 65, but the vocabulary has 65 tokens \(0 to 64\)"
    ):
        TokenShard.open(path, forged, "full", manifest.tokenizer.fingerprint, 65)
