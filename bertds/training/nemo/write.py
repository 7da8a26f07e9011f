"""Writes a NeMo file as a recipe and a DeepSpeed JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bertds.config.load import load_config, read_yaml, split_assignments
from bertds.errors import ConfigError
from bertds.system.atomic_files import write_json, write_text
from bertds.system.logs import log
from bertds.training.nemo.translate import translate


def rows_in_epoch(data: dict[str, Any]) -> int:
    """Return the number of rows per epoch of the training data."""
    from bertds.config.recipe import DataConfig
    from bertds.data.loader import open_source

    return int(open_source(DataConfig(**data), 42, split="train").samples_in_epoch(0))


def write_translation(
    source: str, overrides: list[str], folder: Path | None = None
) -> tuple[Path, Path]:
    """Translate a NeMo file and write the recipe and the DeepSpeed JSON.

    Args:
        source: the NeMo file.
        overrides: KEY=VALUE with NeMo's keys; they have precedence.
        folder: where to write; None = next to the run folder, replacing earlier files.

    Returns:
        The paths of the recipe and of the DeepSpeed JSON.

    Raises:
        ConfigError: a key or value that cannot be honoured, or ``folder`` holds such files.
    """
    result = translate(read_yaml(source), source, rows_in_epoch, split_assignments(overrides))
    load_config(result.recipe)  # refuse what the recipe refuses before anything is written
    for note in result.notes:
        log.info("%s", note)
    run_dir = Path(result.recipe["run"]["dir"])
    target = folder or run_dir.with_name(f"{run_dir.name}-config")
    target.mkdir(parents=True, exist_ok=True)
    recipe, settings = target / "recipe.yaml", target / "deepspeed.json"
    # Only a folder that the user named may contain files that are not ours.
    for path in (recipe, settings) if folder else ():
        if path.exists():
            raise ConfigError(f"--write {folder}: {path.name} already exists; choose another DIR")
    write_text(recipe, f"# from {source}\n" + yaml.safe_dump(result.recipe, sort_keys=False))
    write_json(settings, result.deepspeed)
    return recipe, settings
