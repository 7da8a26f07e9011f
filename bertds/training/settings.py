"""The settings of one run: the recipe, its DeepSpeed JSON, and the overrides of both."""

from __future__ import annotations

from bertds.config.load import load_config, split_by_file
from bertds.config.locate import find_deepspeed_json
from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json


def read_settings(
    recipe: str | None, deepspeed_json: str | None, assignments: list[str]
) -> tuple[Config, DeepSpeedSettings]:
    """Read the recipe, the DeepSpeed JSON and the ``--set`` assignments to either."""
    for_recipe, for_json = split_by_file(assignments)
    config = load_config(recipe, for_recipe)
    path = find_deepspeed_json(config, recipe, deepspeed_json)
    return config, load_deepspeed_json(path, for_json)
