"""``bertds export``: a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import EXIT_OK, ConfigError
from bertds.monitor.best_checkpoint import best_of, held_out_losses
from bertds.pretrained import hf_config
from bertds.pretrained.export import export
from bertds.pretrained.output_folder import MARK
from bertds.pretrained.push import check_push, push
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
    parser.add_argument(
        "--push",
        default="",
        metavar="OWNER/NAME",
        help="also upload the folder to the Hugging Face Hub (after `hf auth login`)",
    )
    parser.add_argument("--private", action="store_true", help="with --push: a private repository")
    parser.add_argument(
        "--license",
        default="",
        metavar="ID",
        help="the model's licence for its card, by the hub's name: apache-2.0, cc-by-sa-4.0 ...",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one run."""
    args = parse_args(argv)
    if args.private and not args.push:
        raise ConfigError("--private goes with --push OWNER/NAME")
    if args.push:
        check_push(args.push)
    folder = export(
        args.run,
        args.out,
        average=not args.last_weights,
        best=args.best,
        overwrite=args.overwrite,
        known_as=args.push,
        license_id=args.license,
    )
    if better := better_one(Path(args.run), folder):
        print(better)
    (architecture,) = hf_config.read_config(folder)["architectures"]
    print(f"wrote {folder}: load it with {architecture}.from_pretrained({str(folder)!r})")
    if args.push:
        print(f"uploaded to {push(folder, args.push, private=args.private)}")
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
