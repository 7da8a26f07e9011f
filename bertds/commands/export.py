"""``bertds export``: a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import EXIT_OK
from bertds.monitor.best_checkpoint import best_of, held_out_losses
from bertds.pretrained import hf_config
from bertds.pretrained.export import export
from bertds.pretrained.output_folder import MARK
from bertds.system.json_fields import parse_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds export",
        description="Write a run as a Hugging Face folder that transformers loads.",
    )
    parser.add_argument("run", help="a run folder or one checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--last-weights",
        action="store_true",
        help="the weights of the last step, where the run has kept their moving average too "
        "(schedule.ema_decay); without this option the average is written",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint with the lowest held-out loss instead of the newest",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one run."""
    args = parse_args(argv)
    folder = export(
        args.run,
        args.out,
        average=not args.last_weights,
        best=args.best,
        overwrite=args.overwrite,
    )
    if better := better_one(Path(args.run), folder):
        print(better)
    (architecture,) = hf_config.read_config(folder)["architectures"]
    print(f"wrote {folder}: load it with {architecture}.from_pretrained({str(folder)!r})")
    return EXIT_OK


def better_one(run: Path, folder: Path) -> str:
    """Return a line about a checkpoint with a lower held-out loss than the exported one, or ""."""
    losses = held_out_losses(run / "checkpoints")
    origin = parse_json((folder / MARK).read_text(encoding="utf-8"))["origin"]
    if origin not in losses or losses[best_of(losses)] >= losses[origin]:
        return ""
    best = best_of(losses)
    return (
        f"note: {best} has a lower held-out loss than {origin}: {losses[best]:.4f} instead of "
        f"{losses[origin]:.4f} nats; --best exports it"
    )
