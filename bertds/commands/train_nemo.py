"""``bertds train --nemo-config``: translate one of NeMo's files, then train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from bertds.config.load import read_yaml
from bertds.errors import EXIT_OK, ConfigError
from bertds.system.atomic_files import write_json, write_text
from bertds.system.logs import log
from bertds.training.nemo.translate import translate


def rows_in_epoch(data: dict[str, Any]) -> int:
    """Return how many rows the training data have."""
    from bertds.config.recipe import DataConfig
    from bertds.data.loader import open_source

    return int(open_source(DataConfig(**data), 42, split="train").samples_in_epoch(0))


def main(argv: list[str] | None = None) -> int:
    """Translate a NeMo file, and train."""
    parser = argparse.ArgumentParser(
        prog="bertds train --nemo-config",
        description="Pre-train by one of NeMo's BERT configurations.",
    )
    parser.add_argument("--nemo-config", required=True, metavar="F.yaml")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write recipe.yaml and deepspeed.json there instead of training",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="recipe keys that win, as for bertds train",
    )
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="number of ranks")
    parser.add_argument("--restarts", type=int, default=0, metavar="K", help="after a crash")
    parser.add_argument("overrides", nargs="*", metavar="nemo.key=value", help="NeMo's own keys")
    args = parser.parse_intermixed_args(argv)
    from bertds.config.load import load_config, split_assignments
    from bertds.system.logs import start_logging

    start_logging(is_main=True)
    overrides = split_assignments(args.overrides)
    result = translate(read_yaml(args.nemo_config), args.nemo_config, rows_in_epoch, overrides)
    load_config(result.recipe)  # refuse what the recipe refuses before anything is written
    for note in result.notes:
        log.info("%s", note)
    folder = args.write or Path(result.recipe["run"]["dir"]).with_name(
        Path(result.recipe["run"]["dir"]).name + "-config"
    )
    folder.mkdir(parents=True, exist_ok=True)
    recipe, settings = folder / "recipe.yaml", folder / "deepspeed.json"
    for path in (recipe, settings) if args.write else ():
        if path.exists():
            raise ConfigError(f"--write {folder}: {path.name} is there already; choose another DIR")
    write_text(
        recipe, f"# from {args.nemo_config}\n" + yaml.safe_dump(result.recipe, sort_keys=False)
    )
    write_json(settings, result.deepspeed)
    if args.write:
        print(
            f"wrote {recipe} and {settings}: bertds train --processes N --config {recipe} "
            f"--deepspeed_config {settings}"
        )
        return EXIT_OK
    from bertds import train

    command = ["--config", str(recipe), "--deepspeed_config", str(settings)]
    if args.processes or args.restarts:
        command += ["--processes", str(args.processes), "--restarts", str(args.restarts)]
    return train.main([*command, *(["--set", *args.set] if args.set else [])])
