"""``bertds export``: a run as a Hugging Face folder."""

from __future__ import annotations

import argparse

from bertds.errors import EXIT_OK
from bertds.pretrained import hf_config
from bertds.pretrained.export import export


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
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one run."""
    args = parse_args(argv)
    folder = export(args.run, args.out, average=not args.last_weights)
    (architecture,) = hf_config.read_config(folder)["architectures"]
    print(f"wrote {folder}: load it with {architecture}.from_pretrained({str(folder)!r})")
    return EXIT_OK
