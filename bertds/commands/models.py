"""``bertds models``: lists the models that are known by name."""

from __future__ import annotations

import argparse
import sys

from bertds.data.model_names import ALIASES, MODELS, is_here
from bertds.errors import EXIT_OK
from bertds.system.arguments import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds models",
        description="List the models that --model, init.from and bertds.from_pretrained accept "
        "by name. They also accept a run, a checkpoint, a Hugging Face folder or a "
        "Hub id.",
    )
    parser.add_argument("--names", action="store_true", help="print only the names")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """List the named models."""
    args = parse_args(argv)
    if args.names:
        print("\n".join([*MODELS, *ALIASES]))
        return EXIT_OK
    of_alias: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        of_alias.setdefault(name, []).append(alias)
    width = max(map(len, MODELS))
    for named in MODELS.values():
        here = "local" if is_here(named.name) else "-"
        aliases = f"; alias {', '.join(of_alias[named.name])}" if named.name in of_alias else ""
        print(f"{named.name:<{width}}  {here:<5}  {named.about}{aliases}")
    print(
        "\nlocal = in the cache or in $BERTDS_MODELS; other models are downloaded from the Hub "
        "when first used (or with hf download HUB_ID)",
        file=sys.stderr,
    )
    return EXIT_OK
