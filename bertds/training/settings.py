"""The settings of one run: the recipe, its DeepSpeed JSON, and the overrides of both."""

from __future__ import annotations

from pathlib import Path

from bertds.config.load import load_config, split_assignments
from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json
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


def read_settings(
    recipe: str | None, deepspeed_json: str | None, assignments: list[str]
) -> tuple[Config, DeepSpeedSettings]:
    """Read the recipe, the DeepSpeed JSON and the ``--set`` assignments to either."""
    values = split_assignments(assignments)
    prefix = "deepspeed."
    for_json = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    config = load_config(recipe, {k: v for k, v in values.items() if not k.startswith(prefix)})
    path = find_deepspeed_json(config, recipe, deepspeed_json)
    return config, load_deepspeed_json(path, for_json)
