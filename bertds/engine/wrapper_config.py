"""Builds the configuration for DeepSpeed: the user's JSON plus what this project decides."""

from __future__ import annotations

from typing import Any

import torch

from bertds.config.batch_plan import BatchPlan
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.optim.lamb import ShardedLamb
from bertds.optim.muon import ShardedMuon


def wrapper_config(
    settings: DeepSpeedSettings, batch: BatchPlan, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return the ``config`` argument of ``deepspeed.initialize``."""
    # The optimizer is built here and passed as an object.
    config = {key: value for key, value in settings.values.items() if key != "optimizer"}
    config["train_batch_size"] = batch.global_batch_size
    config["train_micro_batch_size_per_gpu"] = batch.micro_batch_size
    config["gradient_accumulation_steps"] = batch.gradient_accumulation_steps
    config["zero_optimization"] = {**config["zero_optimization"], "stage": settings.stage}
    # Set explicitly, because DeepSpeed clips at 1.0 if the key is missing. At stage 0 the engine
    # clips itself.
    config["gradient_clipping"] = 0.0 if settings.stage == 0 else settings.gradient_clipping
    # Without these, DeepSpeed accepts only optimizers that it knows under ZeRO, and only its own
    # CPU Adam with offloading.
    if isinstance(optimizer, ShardedLamb | ShardedMuon):
        config["zero_allow_untested_optimizer"] = True
        config["zero_force_ds_cpu_optimizer"] = False
    if settings.stage == 3:
        # One sub-group: the optimizer is then called once per step.
        config["zero_optimization"].setdefault("sub_group_size", 1_000_000_000_000)
    return config
