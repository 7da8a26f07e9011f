"""HDF5 files that would have their reader open, or unpack, something else."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from bertds.data.formats.nvidia_hdf5 import read_header, read_instances
from bertds.data.formats.token_shards import TokenShard, write_token_shard
from bertds.errors import DataError

SECRET = b"root:secret:0:0" * 20
ROWS, LENGTH, PREDICTIONS = 4, 8, 2


def _external_storage(file: h5py.File, name: str, shape, dtype, outside: Path) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    secret = outside / "secret.bin"
    secret.write_bytes(SECRET)
    file.create_dataset(name, shape, dtype, external=[(str(secret), 0, size)])


def _external_link(file: h5py.File, name: str, shape, dtype, outside: Path) -> None:
    with h5py.File(outside / "other.h5", "w") as other:
        other.create_dataset(name, shape, dtype)
    file[name] = h5py.ExternalLink(str(outside / "other.h5"), f"/{name}")


def _soft_link(file: h5py.File, name: str, shape, dtype, outside: Path) -> None:
    file["elsewhere"] = h5py.ExternalLink(str(outside / "other.h5"), "/")
    file[name] = h5py.SoftLink(f"/elsewhere/{name}")
    with h5py.File(outside / "other.h5", "w") as other:
        other.create_dataset(name, shape, dtype)


def _virtual(file: h5py.File, name: str, shape, dtype, outside: Path) -> None:
    with h5py.File(outside / "other.h5", "w") as other:
        other.create_dataset(name, shape, dtype)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(outside / "other.h5"), name, shape)
    file.create_virtual_dataset(name, layout)


def _texts(file: h5py.File, name: str, shape, dtype, outside: Path) -> None:
    file.create_dataset(name, shape, h5py.string_dtype(), fillvalue="a text in a heap")


ATTACKS = {
    "external storage": _external_storage,
    "a link into another file": _external_link,
    "a soft link": _soft_link,
    "a virtual dataset": _virtual,
}


def instance_file(path: Path, attacked: str, attack, outside: Path) -> Path:
    shapes = {
        "input_ids": ((ROWS, LENGTH), "<i4"),
        "input_mask": ((ROWS, LENGTH), "<i1"),
        "segment_ids": ((ROWS, LENGTH), "<i1"),
        "masked_lm_positions": ((ROWS, PREDICTIONS), "<i4"),
        "masked_lm_ids": ((ROWS, PREDICTIONS), "<i4"),
        "next_sentence_labels": ((ROWS,), "<i1"),
    }
    outside.mkdir()
    with h5py.File(path, "w") as file:
        for name, (shape, dtype) in shapes.items():
            if name == attacked:
                attack(file, name, shape, dtype, outside)
            else:
                ones = name.startswith("input")
                file.create_dataset(name, data=np.full(shape, int(ones), dtype))
    return path


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("name", ["input_ids", "next_sentence_labels"])
def test_rows_located_in_another_file_are_refused_by_name(tmp_path: Path, kind, name) -> None:
    path = instance_file(tmp_path / "rows.hdf5", name, ATTACKS[kind], tmp_path / "outside")
    for read in (read_header, read_instances):
        with pytest.raises(DataError, match=f"rows.hdf5: {name} (is|has) {kind}"):
            read(path)


@pytest.mark.parametrize("kind", ATTACKS)
def test_token_shards_located_in_another_file_are_refused(tmp_path: Path, kind) -> None:
    path = tmp_path / "shard_00000.h5"
    (tmp_path / "outside").mkdir()
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update({"format": "bertds-token-shard", "version": 1})
        ATTACKS[kind](file, "token_ids", (8,), "<u2", tmp_path / "outside")
        file.create_dataset("sentence_offsets", data=np.array([0, 8], "<i8"))
        file.create_dataset("document_offsets", data=np.array([0, 1], "<i8"))
    with pytest.raises(DataError, match=f"shard_00000.h5: token_ids (is|has) {kind}"):
        TokenShard.open(path)


def token_shard(path: Path) -> bytearray:
    write_token_shard(
        path, np.arange(8), [0, 4, 8], [0, 1, 2], vocab_size=100, fingerprint="f" * 64
    )
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("entry", ["free", "text"])
def test_a_heap_that_hdf5_would_follow_forever_is_refused(tmp_path: Path, entry: str) -> None:
    """An entry of zero bytes, and one whose size overflows to zero with its header."""
    data = token_shard(path := tmp_path / "shard_00000.h5")
    heap = data.index(b"GCOL")
    assert data[heap + 32 : heap + 50] == b"bertds-token-shard"
    if entry == "free":
        data[heap + 56 : heap + 80] = bytes(24)
    else:
        data[heap + 24 : heap + 32] = (2**64 - 16).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"damaged: the heap at byte {heap} has an impossible"):
        TokenShard.open(path)


def test_a_heap_inside_the_tokens_is_not_found(tmp_path: Path) -> None:
    """Nothing but the few bytes around the values is searched for heaps, and shown to HDF5."""
    path = tmp_path / "shard_00000.h5"
    heap = np.frombuffer(b"GCOL\x01" + bytes(3) + (4096).to_bytes(8, "little"), np.uint16)
    tokens = np.zeros(4096, np.uint16)
    tokens[:8] = heap
    write_token_shard(path, tokens, [0, 4096], [0, 1], vocab_size=65_000, fingerprint="f" * 64)
    assert TokenShard.open(path).tokens == 4096  # ids that look like a heap are ids
    data = bytearray(path.read_bytes())
    first, second = data.index(b"GCOL"), data.rindex(b"GCOL")
    assert first < second
    at = data.index(first.to_bytes(8, "little"))
    while at >= 0:  # each attribute now refers to the heap among the tokens
        data[at : at + 8] = second.to_bytes(8, "little")
        at = data.find(first.to_bytes(8, "little"))
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged, or not a token shard"):
        TokenShard.open(path)


def test_many_heaps_inside_each_other_take_little_time(tmp_path: Path) -> None:
    data = token_shard(path := tmp_path / "shard_00000.h5")
    count = 3000
    size = 32 * count
    for number in range(count):
        data += b"GCOL\x01" + bytes(3) + (size - 32 * number).to_bytes(8, "little")
        data += (1).to_bytes(8, "little") + bytes(8)
    path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(DataError, match="has an impossible entry"):
        TokenShard.open(path)
    assert time.process_time() - began < 2


def test_texts_are_refused_before_hdf5_reads_their_heap(tmp_path: Path) -> None:
    """A dataset's fill value may be a text in a heap, and HDF5 reads it to describe the dataset."""
    path = instance_file(tmp_path / "rows.hdf5", "input_ids", _texts, tmp_path / "outside")
    data = bytearray(path.read_bytes())
    data[data.index(b"GCOL") + 56 : data.index(b"GCOL") + 64] = bytes(8)
    path.write_bytes(data)
    for read in (read_header, read_instances):
        with pytest.raises(DataError, match=r"rows.hdf5: input_ids is object, expected integers"):
            read(path)


@pytest.mark.parametrize("name", ["format", "version", "fingerprint"])
def test_attributes_that_are_arrays_are_refused(tmp_path: Path, name: str) -> None:
    token_shard(path := tmp_path / "shard_00000.h5")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.array([1, 2])
    with pytest.raises(DataError, match=r"not a token shard|shard version None|fingerprint None"):
        TokenShard.open(path, fingerprint="f" * 64)


def test_a_small_file_cannot_ask_for_terabytes(tmp_path: Path) -> None:
    """Chunks that were never written cost nothing in the file, and all of their size when read."""
    path = tmp_path / "huge.hdf5"
    rows = 1 << 31
    with h5py.File(path, "w") as file:
        for name, width in (
            ("input_ids", 128),
            ("input_mask", 128),
            ("segment_ids", 128),
            ("masked_lm_positions", 20),
            ("masked_lm_ids", 20),
        ):
            file.create_dataset(name, (rows, width), "<i4", chunks=(1024, width))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        DataError, match=r"input_ids unpacks to 1,099,511,627,776 bytes, but the file"
    ):
        read_instances(path)
