"""HDF5 files that are written: with the bytes of HDF5 itself, and without its way to fail."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bertds.data.formats.hdf5_files import new_hdf5, open_hdf5
from bertds.data.formats.nvidia_hdf5 import INSTANCE_DTYPES, write_instance_file
from bertds.data.formats.token_shards import write_token_shard
from bertds.errors import BertdsError, DataError

ROWS, LENGTH, PREDICTIONS = 3000, 64, 8


def write_rows(path: Path) -> None:
    widths = {"input_ids": LENGTH, "input_mask": LENGTH, "segment_ids": LENGTH}
    widths |= {"masked_lm_positions": PREDICTIONS, "masked_lm_ids": PREDICTIONS}
    shapes = {n: (ROWS, widths[n]) if n in widths else (ROWS,) for n in INSTANCE_DTYPES}
    rng = np.random.default_rng(0)
    rows = {n: rng.integers(0, 99, shapes[n]).astype(d) for n, d in INSTANCE_DTYPES.items()}
    write_instance_file(path, rows)


def write_shard(path: Path) -> None:
    ids, offsets = np.arange(90_000) % 100, np.arange(0, 90_001, 10)
    documents = np.array([0, 9000])
    write_token_shard(path, ids, offsets, documents, vocab_size=100, fingerprint="f")


@pytest.mark.parametrize("write", [write_rows, write_shard])
@pytest.mark.parametrize("room", [0, 5_000, 100_000])
def test_a_file_that_does_not_fit_is_one_error_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None], room: int
) -> None:
    """HDF5 would fail with a RuntimeError, and crash the process at its end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(BertdsError, match=r"a\.h5: File too large"):
            write(tmp_path / "a.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").stat().st_size > 100_000


@pytest.mark.parametrize(
    "layout",
    [
        {"libver": ("earliest", "v110")},
        {"libver": ("v110", "v110"), "alignment_threshold": 1, "alignment_interval": 64},
    ],
)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_bytes_are_those_of_a_file_on_a_disk(
    tmp_path: Path, layout: dict[str, Any], compression: str | None
) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["format"] = "made up"
        grows = {"maxshape": (None, 64), "chunks": (500, 64), "compression": compression}
        file.create_dataset("rows", (0, 64), "<i4", track_times=False, **grows)
        for number in range(4):
            file["rows"].resize((number + 1) * 700, axis=0)
            file["rows"][number * 700 :] = np.arange(700 * 64).reshape(700, 64)
        file.create_dataset("whole", data=np.arange(3000), track_times=False)

    with h5py.File(tmp_path / "disk.h5", "w", **layout) as file:
        fill(file)
    with new_hdf5(tmp_path / "memory.h5", **layout) as file:
        fill(file)
    assert (tmp_path / "memory.h5").read_bytes() == (tmp_path / "disk.h5").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_an_error_of_the_disk_is_not_reported_as_damage() -> None:
    with pytest.raises(DataError) as caught, open_hdf5(Path("/proc/self/mem")):
        pass
    assert str(caught.value) == "/proc/self/mem: cannot be read (Input/output error)"
