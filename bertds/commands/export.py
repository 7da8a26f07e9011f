"""``bertds export``: writes a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import EXIT_OK, ConfigError
from bertds.monitor.best_checkpoint import best_of, held_out_losses
from bertds.pretrained import hf_config
from bertds.pretrained.export import export
from bertds.pretrained.output_folder import MARK
from bertds.pretrained.push import check_push, push
from bertds.system.arguments import CommandParser
from bertds.system.json_fields import parse_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds export",
        description="Write a run as a Hugging Face folder that transformers can load.",
    )
    parser.add_argument("run", help="a run folder or a checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--last-weights",
        action="store_true",
        help="write the weights of the last step instead of their moving average "
        "(schedule.ema_decay)",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="export the checkpoint with the lowest held-out loss instead of the newest one",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--push",
        default="",
        metavar="OWNER/NAME",
        help="also upload the folder to the Hugging Face Hub (run `hf auth login` first)",
    )
    parser.add_argument(
        "--private", action="store_true", help="with --push: make the repository private"
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="ID",
        help="licence of the model for its card, such as apache-2.0 or cc-by-sa-4.0",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one run."""
    args = parse_args(argv)
    if args.private and not args.push:
        raise ConfigError("--private requires --push OWNER/NAME")
    # The upload must not fail after the export because of a login or a name.
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
    # The user may want the checkpoint with the lowest loss, not the newest one.
    if better := better_one(Path(args.run), folder):
        print(better)
    (architecture,) = hf_config.read_config(folder)["architectures"]
    print(f"wrote {folder}: load it with {architecture}.from_pretrained({str(folder)!r})")
    if args.push:
        print(f"uploaded to {push(folder, args.push, private=args.private)}")
    return EXIT_OK


def better_one(run: Path, folder: Path) -> str:
    """Return a note about a checkpoint with a lower loss than the exported one, or ""."""
    losses = held_out_losses(run / "checkpoints")
    origin = parse_json((folder / MARK).read_text(encoding="utf-8"))["origin"]
    if origin not in losses or losses[best_of(losses)] >= losses[origin]:
        return ""
    best = best_of(losses)
    return (
        f"note: {best} has a lower held-out loss than {origin}: {losses[best]:.4f} compared with "
        f"{losses[origin]:.4f} nats; use --best to export it"
    )
