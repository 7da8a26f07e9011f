"""Merges the rank files of a checkpoint into one file of whole tensors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from bertds.checkpoint.find import locate, step_name
from bertds.checkpoint.format import CheckpointReader, write_manifest, write_pieces
from bertds.engine.state_pieces import Piece
from bertds.errors import CheckpointError
from bertds.system.atomic_files import atomic_path, explain_os_error, sync_folder


def convert(source: str, out: Path, *, weights_only: bool) -> Path:
    """Write a checkpoint as one file.

    Args:
        source: a run (its newest intact checkpoint) or a checkpoint folder.
        out: the folder to write to.
        weights_only: write whole weights under their names instead of a checkpoint.

    Returns:
        The file or the checkpoint folder that was written.

    Raises:
        CheckpointError: the source is damaged, or the target exists.
    """
    reader = locate(source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if weights_only:
            file = out / "model.safetensors"
            if file.exists():
                raise CheckpointError(f"{file}: already exists; choose another --out")
            with atomic_path(file) as temporary:
                save_file(dict(reader.weights()), temporary, metadata={"format": "pt"})
            return file
        # Write a checkpoint of one rank to a temporary folder, then rename it.
        final = out / step_name(reader.manifest["step"])
        if final.exists():
            raise CheckpointError(f"{final}: already exists; choose another --out")
        temporary = out / f".tmp-{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        record, pieces = write_pieces(temporary, 0, list(_whole_tensors(reader)))
        # write_manifest adds the format, the version and a new checksum.
        kept = {k: v for k, v in reader.manifest.items() if k not in ("format", "version")}
        write_manifest(
            temporary,
            {**kept, "files": [asdict(record)], "pieces": [list(piece) for piece in pieces]},
        )
        temporary.rename(final)
        sync_folder(out)
    except OSError as error:
        raise explain_os_error(error, Path(error.filename or out)) from error
    return final


def _whole_tensors(reader: CheckpointReader) -> Iterator[Piece]:
    for name, shape in reader.shapes.items():
        numel = torch.Size(shape).numel()
        for kind in reader.kinds(name):
            yield Piece(name, kind, 0, reader.read(name, kind, 0, numel))
