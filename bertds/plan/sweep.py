"""Compares many layouts: ZeRO stages, micro batches, node counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bertds.config.recipe import Config
from bertds.cost_model.hardware import Hardware
from bertds.cost_model.memory import estimate
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import ConfigError
from bertds.plan.forecast import Forecast, forecast

MOST_DEVICES = 4096


def sweep(
    config: Config,
    settings: DeepSpeedSettings,
    hardware: Hardware,
    devices_per_node: int,
    common: dict[str, Any],
) -> list[Forecast]:
    """Forecast every stage, micro batch (powers of two) and node count that divides the batch."""
    settings = replace(settings, gradient_accumulation_steps=None)  # each layout has its own
    rows = []
    nodes = 1
    while nodes * devices_per_node <= MOST_DEVICES:
        for stage in _stages(settings.precision):
            for micro in (2**k for k in range(11)):
                try:
                    rows.append(
                        forecast(
                            config,
                            settings,
                            hardware,
                            nodes=nodes,
                            devices_per_node=devices_per_node,
                            stage=stage,
                            micro_batch=micro,
                            **common,
                        )
                    )
                except ConfigError:  # the global batch cannot be divided like this
                    break
        nodes *= 2
    return rows


def _stages(precision: str) -> range:
    """Return the ZeRO stages that a precision can be trained with."""
    return range(1 if precision in ("bf16", "fp16") else 0, 4)


def best(rows: list[Forecast]) -> list[Forecast]:
    """Return the fastest layout that fits, per node count and stage (or else the smallest)."""
    groups: dict[tuple[int, int], list[Forecast]] = {}
    for row in rows:
        groups.setdefault((row.batch.world_size, row.shape.stage), []).append(row)
    chosen = []
    for members in groups.values():
        fitting = [row for row in members if row.fits]
        chosen.append(
            min(fitting, key=lambda r: (r.step.total, r.memory_gib))
            if fitting
            else min(members, key=lambda r: r.memory_gib)
        )
    return chosen


def fitting_layouts(plan: Forecast) -> str:
    """Return the largest micro batch (power of two) that fits at each stage, as text."""
    words = []
    base = plan.memory.base
    for stage in _stages(plan.shape.precision):
        largest = 0
        for micro in (2**k for k in range(13)):
            shape = replace(plan.shape, stage=stage, micro_batch=micro)
            if not replace(plan, memory=estimate(shape, base)).fits:
                break
            largest = micro
        words.append(f"{stage}: micro batch {largest}" if largest else f"{stage}: none")
    return ", ".join(words)
