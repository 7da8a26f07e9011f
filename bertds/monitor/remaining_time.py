"""The remaining time of the whole plan: this phase, and those that its recipe names.

Phases that have not begun are forecast from their recipes at the arithmetic speed of the current
one: operations of the phase / operations per second. Longer rows are slightly faster on a GPU, so
the forecast is rather too long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.config.batch_plan import BatchPlan
from bertds.config.load import load_config
from bertds.config.locate import find_json, find_recipe
from bertds.config.ramps import BatchRamp
from bertds.config.recipe import Config
from bertds.cost_model.flops import forward_backward_flops, mean_masked_per_row, mean_tokens
from bertds.errors import ConfigError
from bertds.system.json_fields import parse_json


@dataclass(frozen=True, slots=True)
class LaterPhase:
    """A phase that has not begun."""

    recipe: str
    flops: float
    """Operations of all its steps on all devices."""
    clock_hours: float | None = None
    """Hours of training after which it ends at the latest."""


def later_phases(config: Config, vocab_size: int) -> list[LaterPhase]:
    """Follow ``run.next_recipe`` from recipe to recipe.

    Args:
        config: the running phase.
        vocab_size: number of tokens of the vocabulary, the same in all phases.

    Raises:
        ConfigError: a recipe or its DeepSpeed JSON is missing or malformed, or refers back to an
            earlier phase.
    """
    phases: list[LaterPhase] = []
    recipe, seen = "", set[Path]()
    while config.run.next_recipe:
        named = config.run.next_recipe
        path = find_recipe(named, recipe)
        if path.resolve() in seen:
            raise ConfigError(f"run.next_recipe={named}: it refers back to an earlier phase")
        seen.add(path.resolve())
        recipe, config = str(path), load_config(path)
        flops = _flops(config, vocab_size, recipe)
        phases.append(LaterPhase(named, flops, config.schedule.clock_hours))
    return phases


def steps_by_clock(total_steps: int, clock_hours: float | None, step: int, seconds: float) -> int:
    """Return the expected last step of a phase.

    Args:
        total_steps: of the recipe.
        clock_hours: of the recipe; None = only the steps end the phase.
        step: the last one done.
        seconds: duration of all steps so far; 0 = not known yet.

    Returns:
        ``total_steps``, or fewer if the clock will end the phase first.
    """
    if clock_hours is None or not step or seconds <= 0:
        return total_steps
    left = max(0.0, clock_hours * 3600 - seconds)
    return min(total_steps, step + round(left * step / seconds))


def seconds_of(phases: list[LaterPhase], flops_per_second: float) -> float:
    """Return the seconds of later phases at the speed of this one; 0 if it is not known."""
    if flops_per_second <= 0:
        return 0.0
    seconds = 0.0
    for phase in phases:
        clock = math.inf if phase.clock_hours is None else phase.clock_hours * 3600
        seconds += min(clock, phase.flops / flops_per_second)
    return seconds


def speed(line: dict[str, Any], devices: int) -> float:
    """Return the operations per second of all devices that a train line reports; 0 if none."""
    return float(line.get("tflops", 0.0)) * 1e12 * devices


def _flops(config: Config, vocab_size: int, recipe: str) -> float:
    named = config.run.deepspeed_config
    if not named:
        raise ConfigError(
            f"{recipe}: run.deepspeed_config is not set, so the batch size is unknown"
        )
    path = find_json(named, recipe)
    try:
        batch = parse_json(path.read_text(encoding="utf-8"))["train_batch_size"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: train_batch_size cannot be read ({error!r})") from None
    tokens = mean_tokens(config.data.sequence_length)
    full = BatchPlan(global_batch_size=int(batch), micro_batch_size=1, world_size=1)
    ramp = BatchRamp.of(config.schedule, full)
    masked = mean_masked_per_row(config, ramp, tokens)
    per_row = forward_backward_flops(config.model, vocab_size, tokens, masked)
    return per_row * float(ramp.samples(config.schedule.total_steps))
