"""``bertds checkpoint list|verify|convert RUN``: lists, checks or rewrites checkpoints of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.checkpoint.manifest import read_manifest
from bertds.checkpoint.merge_ranks import convert
from bertds.display.words import count
from bertds.errors import EXIT_FAILED, EXIT_OK, CheckpointError, ConfigError
from bertds.monitor.best_checkpoint import best_of, held_out_losses
from bertds.system.arguments import CommandParser
from bertds.system.idle_options import given_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds checkpoint",
        description="list: show the checkpoints of a run with their held-out losses, and mark "
        "the best. verify: check the checksum of every file. convert: write the "
        "newest intact checkpoint, or a given one, as a single file.",
    )
    parser.add_argument("action", choices=("list", "verify", "convert"))
    parser.add_argument("run", help="a run folder, a checkpoint, or the output of convert")
    parser.add_argument("--out", metavar="DIR", help="convert: output folder")
    parser.add_argument(
        "--to",
        choices=("merged", "weights"),
        default="merged",
        help="convert: merged = a checkpoint with the state of all ranks, as if saved by one rank, "
        "including the moments, for init.from (default); weights = DIR/model.safetensors with "
        "unpartitioned float32 tensors",
    )
    args = parser.parse_args(argv)
    for option in given_options(parser, args).intersection(("out", "to")):
        if args.action != "convert":
            raise ConfigError(f"--{option} can only be used with convert, not with {args.action}")
    return args


def main(argv: list[str] | None = None) -> int:
    """List, verify or convert. Returns 1 if a checkpoint is damaged."""
    args = parse_args(argv)
    if args.action == "convert":
        if not args.out:
            raise ConfigError("--out DIR is required: the output folder of convert")
        print(convert(args.run, Path(args.out), weights_only=args.to == "weights"))
        return EXIT_OK
    return _look(args)


def _checkpoints_at(path: Path) -> list[Path]:
    """Return the checkpoints of a run or folder, or the path itself if it is a checkpoint."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    folders = step_folders(path / "checkpoints") or step_folders(path)
    if not folders and step_folders(path.resolve().parent).count(path.resolve()):
        folders = [path]
    if not folders:
        raise CheckpointError(f"{path}: no checkpoints found")
    return folders


def _look(args: argparse.Namespace) -> int:
    folders = _checkpoints_at(Path(args.run))
    losses = held_out_losses(folders[0].resolve().parent)
    worst = EXIT_OK
    for path in reversed(folders):
        try:
            if args.action == "verify":
                CheckpointReader(path)  # reads every file and compares the checksums
            manifest = read_manifest(path)
            size = sum(record["bytes"] for record in manifest["files"])
            verdict = "intact" if args.action == "verify" else ""
            processes = count(manifest["world_size"], "process", "processes")
            held_out = ""
            if path.name in losses:
                held_out = f"  held-out loss {losses[path.name]:.4f}"
                held_out += "  best" if path.name == best_of(losses) else ""
            print(
                f"{path.name}  {size / 2**20:10,.1f} MiB  {processes}  "
                f"samples {manifest['state']['samples']:,}{held_out}  {verdict}".rstrip()
            )
        except CheckpointError as error:
            worst = EXIT_FAILED
            print(f"{path.name}  DAMAGED: {error}")
    return worst
