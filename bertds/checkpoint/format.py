"""The checkpoint format: what a checkpoint folder contains, and how it is written and verified.

```text
step_00000100/
  rank_00000.safetensors   the pieces that rank 0 owned: flat fp32 slices of weights and moments
  rank_00001.safetensors
  manifest.json            written last: what each piece is, file sizes and checksums, the state
```

A piece is a range ``[start, start + length)`` of one flattened parameter, of one kind: ``weight``,
``exp_avg``, ``exp_avg_sq``, or ``average`` (the moving average of the weight, if the run keeps
one). The pieces of all ranks cover every parameter exactly once. So a reader on any number of
ranks, with any ZeRO stage, finds what it needs, regardless of how many ranks wrote the checkpoint.
Nothing is pickled. The files follow the safetensors format and can be read with its library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bertds.checkpoint.manifest import (
    FILE,
    FORMAT,
    VERSION,
    PieceRecord,
    digest,
    model_from,
    read_manifest,
)
from bertds.config.recipe import ModelConfig
from bertds.engine.state_pieces import Piece
from bertds.errors import CheckpointError
from bertds.optim.state_kinds import KINDS, Kind
from bertds.system.atomic_files import sha256_file, write_json
from bertds.system.fault_points import reached
from bertds.system.json_fields import Field


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The name, size and checksum of a written file."""

    file: str
    bytes: int
    sha256: str


class HashingFile:
    """A file that computes the SHA-256 of everything written to it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        reached("checkpoint.write")
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def close(self, *, sync: bool = True) -> str:
        """Flush to the disk, close, and return the SHA-256 of the contents in hexadecimal."""
        reached("checkpoint.sync")
        if sync:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()


def write_pieces(folder: Path, rank: int, pieces: Iterable[Piece]) -> tuple[FileRecord, list[Any]]:
    """Write one rank's pieces as a safetensors file, one by one, without a copy of them all.

    Args:
        folder: the (temporary) checkpoint folder.
        rank: this rank.
        pieces: what the rank owns.

    Returns:
        The file's record and the piece records.
    """
    pieces = list(pieces)
    name = f"rank_{rank:05d}.safetensors"
    # The header lists every piece with its place in the data, so it can be written first.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "bertds": FORMAT}}
    records, end = [], 0
    for piece in pieces:
        key, length = f"{piece.kind}/{piece.name}/{piece.start}", piece.tensor.numel()
        header[key] = {"dtype": "F32", "shape": [length], "data_offsets": [end, end + 4 * length]}
        records.append(PieceRecord(name, key, piece.name, piece.kind, piece.start, length))
        end += 4 * length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    file = HashingFile(folder / name)
    try:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for piece in pieces:
            if piece.tensor.numel():
                values = piece.tensor.detach().to("cpu", torch.float32).contiguous()
                file.write(values.numpy().data.cast("B"))
    except BaseException:
        file.close(sync=False)
        raise
    return FileRecord(name, file.bytes, file.close()), records


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` with its own checksum, and flush the folder to the disk."""
    manifest = {"format": FORMAT, "version": VERSION, **manifest}
    manifest["sha256"] = digest(manifest)
    write_json(folder / FILE, manifest)


class CheckpointReader:
    """Reads slices of weights and moments from one checkpoint.

    Args:
        folder: the checkpoint folder.
        verify: check every file's size and SHA-256 first.

    Raises:
        CheckpointError: something is missing or damaged; the message names the file.
    """

    def __init__(self, folder: Path | str, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if verify:
            self.verify()
        # Sorted by start, so that a read finds adjacent pieces one after the other.
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(shape) for name, shape in self.manifest["shapes"].items()
        }
        self._pieces: dict[tuple[str, str], list[PieceRecord]] = {}
        for values in self.manifest["pieces"]:
            record = PieceRecord(*values)
            self._pieces.setdefault((record.name, record.kind), []).append(record)
        for records in self._pieces.values():
            records.sort(key=lambda record: record.start)
        self._open_files: dict[str, Any] = {}

    def verify(self) -> None:
        """Check that every file exists with its size and checksum.

        Raises:
            CheckpointError: names the first file that is missing, truncated or damaged.
        """
        for record in self.manifest["files"]:
            # Size first: it is cheap and finds a truncated file.
            path = self.folder / record["file"]
            if not path.is_file():
                raise CheckpointError(f"{path}: missing")
            size = path.stat().st_size
            if size != record["bytes"]:
                raise CheckpointError(f"{path}: {size} bytes, but {record['bytes']} were written")
            if sha256_file(path) != record["sha256"]:
                raise CheckpointError(f"{path}: damaged (its checksum does not match)")

    @property
    def _root(self) -> Field:
        return Field(self.folder / FILE, "", self.manifest, CheckpointError)

    def field(self, name: str) -> Field:
        """Return the value of a manifest key as a field that checks types.

        Raises:
            CheckpointError: the manifest does not have the key.
        """
        return self._root[name]

    def model(self) -> tuple[ModelConfig, int]:
        """Return the model's configuration and the size of its vocabulary.

        Raises:
            CheckpointError: the manifest does not describe them.
        """
        return model_from(self._root)

    def has_average(self) -> bool:
        """Whether an average of the weights was saved."""
        return any(kind == "average" for _, kind in self._pieces)

    def kinds(self, name: str) -> list[Kind]:
        """Return the kinds that were saved of a parameter; a frozen one has no moments."""
        return [kind for kind in KINDS if (name, kind) in self._pieces]

    def read(self, name: str, kind: str, start: int, length: int) -> torch.Tensor:
        """Return elements ``[start, start + length)`` of a flattened parameter or moment.

        Returns:
            float32 tensor of shape [length] on the CPU.

        Raises:
            CheckpointError: the checkpoint does not contain them.
        """
        result = torch.empty(length, dtype=torch.float32)
        filled = 0
        # Copy the overlap of each piece with the requested range.
        for record in self._pieces.get((name, kind), []):
            begin, end = max(start, record.start), min(start + length, record.start + record.length)
            if begin < end:
                part = self._slice(record, begin - record.start, end - record.start)
                result[begin - start : end - start] = part
                filled += end - begin
        if filled != length:
            raise CheckpointError(
                f"{self.folder}: contains {filled} of the {length} required elements of {kind} "
                f"{name}"
            )
        return result

    def _slice(self, record: PieceRecord, begin: int, end: int) -> torch.Tensor:
        try:
            # Opened once: a resume reads thousands of pieces from each file.
            if record.file not in self._open_files:
                handle = safe_open(self.folder / record.file, framework="pt", device="cpu")
                self._open_files[record.file] = handle.__enter__()
            stretch = self._open_files[record.file].get_slice(record.key)
            found = (stretch.get_dtype(), stretch.get_shape())
            if found != ("F32", [record.length]):
                raise CheckpointError(
                    f"{self.folder / record.file}: {record.key} is {found[0]} {found[1]}, but "
                    f"the manifest says F32 [{record.length}]"
                )
            part: torch.Tensor = stretch[begin:end]
            return part
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / record.file}: damaged ({error})") from None

    def weights(self, *, average: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter's name and whole tensor, in the order of the model.

        Args:
            average: yield the moving average instead, if one was saved.
        """
        for name, shape in self.shapes.items():
            kind = "average" if average and (name, "average") in self._pieces else "weight"
            yield name, self.read(name, kind, 0, math.prod(shape)).reshape(shape)
