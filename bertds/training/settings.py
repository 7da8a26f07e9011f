"""The settings of one run: the recipe, its DeepSpeed JSON, and the overrides of both."""

from __future__ import annotations

from bertds.config.load import load_config, split_assignments
from bertds.config.locate import find_deepspeed_json
from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json


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
