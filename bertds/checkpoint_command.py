"""``bertds checkpoint list|verify RUN``: look at a run's checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.checkpoint import step_folders
from bertds.checkpoint_files import CheckpointReader, read_manifest
from bertds.errors import EXIT_FAILED, EXIT_OK, CheckpointError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds checkpoint", description="List or verify the checkpoints of a run."
    )
    parser.add_argument("action", choices=("list", "verify"))
    parser.add_argument("run", help="the run folder")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """List or verify. Returns 1 if a checkpoint is damaged."""
    args = parse_args(argv)
    folder = Path(args.run) / "checkpoints"
    folders = step_folders(folder)
    if not folders:
        raise CheckpointError(f"{args.run}: no checkpoints here")
    worst = EXIT_OK
    for path in reversed(folders):
        try:
            if args.action == "verify":
                CheckpointReader(path)
            manifest = read_manifest(path)
            size = sum(record["bytes"] for record in manifest["files"])
            verdict = "intact" if args.action == "verify" else ""
            print(
                f"{path.name}  {size / 2**20:10,.1f} MiB  {manifest['world_size']} processes  "
                f"samples {manifest['state']['samples']:,}  {verdict}".rstrip()
            )
        except CheckpointError as error:
            worst = EXIT_FAILED
            print(f"{path.name}  DAMAGED: {error}")
    return worst
