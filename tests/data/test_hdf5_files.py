"""HDF5 files that would have their reader open, or unpack, something else."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from bertds.data.formats.nvidia_hdf5 import read_header, read_instances
from bertds.data.formats.token_shards import TokenShard
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
def test_rows_that_lie_in_another_file_are_refused_by_name(tmp_path: Path, kind, name) -> None:
    path = instance_file(tmp_path / "rows.hdf5", name, ATTACKS[kind], tmp_path / "outside")
    for read in (read_header, read_instances):
        with pytest.raises(DataError, match=f"rows.hdf5: {name} (is|has) {kind}"):
            read(path)


@pytest.mark.parametrize("kind", ATTACKS)
def test_token_shards_that_lie_in_another_file_are_refused(tmp_path: Path, kind) -> None:
    path = tmp_path / "shard_00000.h5"
    (tmp_path / "outside").mkdir()
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update({"format": "bertds-token-shard", "version": 1})
        ATTACKS[kind](file, "token_ids", (8,), "<u2", tmp_path / "outside")
        file.create_dataset("sentence_offsets", data=np.array([0, 8], "<i8"))
        file.create_dataset("document_offsets", data=np.array([0, 1], "<i8"))
    with pytest.raises(DataError, match=f"shard_00000.h5: token_ids (is|has) {kind}"):
        TokenShard.open(path)


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
