"""``bertds checkpoint list|verify|convert RUN``: look at a run's checkpoints, or rewrite one."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from bertds.checkpoint.format import CheckpointReader, read_manifest, write_manifest, write_pieces
from bertds.checkpoint.save import locate, step_folders
from bertds.errors import EXIT_FAILED, EXIT_OK, CheckpointError, ConfigError
from bertds.system.atomic_files import atomic_path, explain_os_error, sync_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds checkpoint",
        description="list: what a run has saved. verify: check every file's checksum. convert: "
        "write the newest good checkpoint, or the one named, as a single file.",
    )
    parser.add_argument("action", choices=("list", "verify", "convert"))
    parser.add_argument("run", help="the run folder, a checkpoint, or what convert wrote")
    parser.add_argument("--out", metavar="DIR", help="convert: where to write")
    parser.add_argument(
        "--to",
        choices=("merged", "weights"),
        default="merged",
        help="convert: merged = a checkpoint of one rank, moments and all, that init.from takes; "
        "weights = DIR/model.safetensors with whole float32 tensors",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """List, verify or convert. Returns 1 if a checkpoint is damaged."""
    args = parse_args(argv)
    if args.action == "convert":
        if not args.out:
            raise ConfigError("--out is needed: the folder that convert writes to")
        print(convert(args.run, Path(args.out), weights_only=args.to == "weights"))
        return EXIT_OK
    return _look(args)


class _WholeTensor(NamedTuple):
    name: str
    kind: str
    start: int
    tensor: torch.Tensor


def convert(source: str, out: Path, *, weights_only: bool) -> Path:
    """Write a checkpoint's ranks as one file.

    Args:
        source: a run (its newest good checkpoint) or a checkpoint folder.
        out: the folder to write to.
        weights_only: whole weights under their names, instead of a checkpoint.

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
            with atomic_path(file) as temporary:
                save_file(dict(reader.weights()), temporary, metadata={"format": "pt"})
            return file
        final = out / f"step_{reader.manifest['step']:08d}"
        if final.exists():
            raise CheckpointError(f"{final}: exists already")
        temporary = out / f".tmp-{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        record, pieces = write_pieces(temporary, 0, list(_whole_tensors(reader)))
        kept = {k: v for k, v in reader.manifest.items() if k not in ("format", "version")}
        write_manifest(
            temporary,
            {**kept, "files": [asdict(record)], "pieces": [list(piece) for piece in pieces]},
        )
        sync_folder(temporary)
        temporary.rename(final)
        sync_folder(out)
    except OSError as error:
        raise explain_os_error(error, Path(error.filename or out)) from error
    return final


def _whole_tensors(reader: CheckpointReader) -> Iterator[_WholeTensor]:
    for name, shape in reader.shapes.items():
        numel = torch.Size(shape).numel()
        for kind in reader.kinds(name):
            yield _WholeTensor(name, kind, 0, reader.read(name, kind, 0, numel))


def _checkpoints_at(path: Path) -> list[Path]:
    """Return the checkpoints of a run, of a folder that holds some, or the one that it is."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    folders = step_folders(path / "checkpoints") or step_folders(path)
    if not folders and step_folders(path.resolve().parent).count(path.resolve()):
        folders = [path]
    if not folders:
        raise CheckpointError(f"{path}: no checkpoints here")
    return folders


def _look(args: argparse.Namespace) -> int:
    folders = _checkpoints_at(Path(args.run))
    worst = EXIT_OK
    for path in reversed(folders):
        try:
            if args.action == "verify":
                CheckpointReader(path)
            manifest = read_manifest(path)
            size = sum(record["bytes"] for record in manifest["files"])
            verdict = "intact" if args.action == "verify" else ""
            world = manifest["world_size"]
            processes = f"{world} process" + ("es" if world > 1 else "")
            print(
                f"{path.name}  {size / 2**20:10,.1f} MiB  {processes}  "
                f"samples {manifest['state']['samples']:,}  {verdict}".rstrip()
            )
        except CheckpointError as error:
            worst = EXIT_FAILED
            print(f"{path.name}  DAMAGED: {error}")
    return worst
