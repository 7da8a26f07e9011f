"""Reads TensorFlow checkpoints (format V2) without TensorFlow.

``NAME.index`` is a sorted table in LevelDB's format: key -> a small protocol-buffer message that
states the position of the tensor in ``NAME.data-00000-of-0000N``. All data are checked
against their CRC-32C. Formats: tensorflow/core/util/tensor_bundle, tensorflow/core/lib/io/table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bertds.errors import CheckpointError

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
BLOCK_TRAILER_BYTES = 5  # compression (1), masked CRC-32C (4)
_CRC_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK_DELTA = 0xA282EAD8

# tensorflow/core/framework/types.proto
_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    14: np.dtype("<u2"),
    19: np.dtype("<f2"),
}
_BFLOAT16 = 14


@dataclass(frozen=True, slots=True)
class Entry:
    """Type and location of one tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool


class TensorFlowCheckpoint:
    """The tensors of a checkpoint by name; each is read only on request."""

    def __init__(self, prefix: Path | str) -> None:
        """Read the index of ``prefix`` (``.../bert_model.ckpt``)."""
        self.prefix = Path(prefix)
        self.index = self.prefix.with_name(self.prefix.name + ".index")
        table = read_table(self.index)
        header = _fields(table.get(b"", b""), self.index)
        self.shards = int(header.get(1, [1])[0])
        if header.get(2, [0])[0] != 0:
            raise CheckpointError(f"{self.index}: big-endian tensors are not supported")
        self.entries = {
            key.decode("utf-8", "replace"): _entry(value, self.index)
            for key, value in table.items()
            if key
        }

    def read(self, name: str) -> np.ndarray:
        """Return one tensor; bfloat16 and float16 become float32.

        Raises:
            CheckpointError: the tensor is missing, of an unsupported kind, truncated, or damaged.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.index}: no tensor {name!r}")
        entry = self.entries[name]
        if entry.sliced:
            raise CheckpointError(
                f"{self.index}: {name} is saved in slices, which are not supported"
            )
        if entry.dtype not in _TYPES:
            raise CheckpointError(f"{self.index}: {name} has type {entry.dtype}, not a number")
        path = self.prefix.with_name(
            f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}"
        )
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        dtype = _TYPES[entry.dtype]
        expected = int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize
        if len(data) != entry.size or entry.size != expected:
            raise CheckpointError(f"{path}: truncated, or not of the shape given in {self.index}")
        if masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(f"{path}: {name} is damaged (its checksum differs)")
        values = np.frombuffer(data, dtype).reshape(entry.shape)
        # A bfloat16 is the upper half of a float32.
        if entry.dtype == _BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if dtype == np.dtype("<f2") else values.copy()


def read_table(path: Path) -> dict[bytes, bytes]:
    """Return the keys and values of a table file.

    Raises:
        CheckpointError: the file is not such a table, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != TABLE_MAGIC:
        raise CheckpointError(f"{path}: not the index of a TensorFlow checkpoint (format V2)")
    try:
        footer = data[-FOOTER_BYTES:]
        _, place = _varint(footer, 0)  # offset and size of the meta-index block: not needed
        _, place = _varint(footer, place)
        index_offset, place = _varint(footer, place)
        index_size, _ = _varint(footer, place)
        table: dict[bytes, bytes] = {}
        for handle in _block(data, index_offset, index_size, path).values():
            offset, place = _varint(handle, 0)
            size, _ = _varint(handle, place)
            table.update(_block(data, offset, size, path))
    except (IndexError, struct.error):
        raise CheckpointError(f"{path}: damaged: an entry reaches beyond its block") from None
    return table


def _block(data: bytes, offset: int, size: int, path: Path) -> dict[bytes, bytes]:
    end = offset + size
    if end + BLOCK_TRAILER_BYTES > len(data):
        raise IndexError
    compression = data[end]
    if masked_crc32c(data[offset : end + 1]) != struct.unpack_from("<I", data, end + 1)[0]:
        raise CheckpointError(f"{path}: damaged: a block's checksum differs")
    if compression != 0:
        raise CheckpointError(f"{path}: compressed with snappy, which is not supported")
    block = data[offset:end]
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    stop = size - 4 * (restarts + 1)
    entries: dict[bytes, bytes] = {}
    place, key = 0, b""
    while place < stop:
        # A key shares its first bytes with the previous one.
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        if place + unshared + length > stop:
            raise IndexError
        key = key[:shared] + block[place : place + unshared]
        place += unshared
        entries[key] = block[place : place + length]
        place += length
    return entries


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a variable-length integer and the offset after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _fields(data: bytes, path: Path) -> dict[int, list[Any]]:
    """Return the fields of a protocol-buffer message: number -> values, undecoded."""
    fields: dict[int, list[Any]] = {}
    place = 0
    try:
        while place < len(data):
            tag, place = _varint(data, place)
            number, kind = tag >> 3, tag & 7
            value: int | bytes
            # The wire types: 0 varint, 1 64 bits, 2 a length and bytes, 5 32 bits.
            if kind == 0:
                value, place = _varint(data, place)
            elif kind == 1:
                value, place = struct.unpack_from("<Q", data, place)[0], place + 8
            elif kind == 2:
                length, place = _varint(data, place)
                value, place = data[place : place + length], place + length
            elif kind == 5:
                value, place = struct.unpack_from("<I", data, place)[0], place + 4
            else:
                raise IndexError
            fields.setdefault(number, []).append(value)
    except (IndexError, struct.error):
        raise CheckpointError(f"{path}: damaged: not a protocol-buffer message") from None
    return fields


def _entry(data: bytes, path: Path) -> Entry:
    fields = _fields(data, path)
    shape = []
    for message in fields.get(2, []):
        for dimension in _fields(message, path).get(2, []):
            shape.append(int(_fields(dimension, path).get(1, [0])[0]))
    return Entry(
        dtype=fields.get(1, [0])[0],
        shape=tuple(shape),
        shard=fields.get(3, [0])[0],
        offset=fields.get(4, [0])[0],
        size=fields.get(5, [0])[0],
        crc32c=fields.get(6, [0])[0],
        sliced=7 in fields,
    )


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C as the formats store it: rotated, plus a constant."""
    crc = int(_crc32c()(np.frombuffer(data, np.uint8), _crc_table()))
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


@cache
def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_CRC_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@cache
def _crc32c() -> Callable[[np.ndarray, np.ndarray], np.uint32]:
    # Hundreds of megabytes are read byte by byte, for which only compiled code is fast enough.
    import numba

    @numba.njit(cache=False)
    def crc32c(data: np.ndarray, table: np.ndarray) -> np.uint32:
        crc = np.uint32(0xFFFFFFFF)
        for byte in data:
            crc = table[(crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        return crc ^ np.uint32(0xFFFFFFFF)

    return crc32c
