"""Finds recipes and DeepSpeed JSONs by name or path."""

from __future__ import annotations

from pathlib import Path

from bertds.config.recipe import Config
from bertds.errors import ConfigError


def find_deepspeed_json(config: Config, recipe: str | None, given: str | None) -> Path:
    """Return the DeepSpeed JSON to use: the one given, else the one that the recipe names.

    A recipe's relative path is looked for from the working directory, then beside the recipe's
    own clone (``ds_configs/`` stands next to ``bertds/``).
    """
    if given:
        return Path(given)
    named = config.run.deepspeed_config
    if not named:
        raise ConfigError(
            "no DeepSpeed JSON: give --deepspeed_config F.json, or run.deepspeed_config in the "
            "recipe"
        )
    places = [Path(named), Path(__file__).resolve().parents[2] / named]
    if recipe:
        places.append(Path(recipe).resolve().parent / named)
    return next((place for place in places if place.is_file()), places[0])
