"""Builds the optimizer that the JSON asks for, in the implementation that suits the device.

====================== ==================================================================
Lamb                   bertds.optim.lamb, everywhere
Muon                   bertds.optim.muon, everywhere
Adam, AdamW on a GPU   DeepSpeed's FusedAdam; torch's fused one with ``"torch_adam": true``
Adam, AdamW on a CPU   torch's fused one: as fast as DeepSpeed's, and needs no compiler
... offloaded          DeepSpeed's CPU Adam, which needs a compiler; torch's fused one with
                       ``"zero_force_ds_cpu_optimizer": false``
====================== ==================================================================
"""

from __future__ import annotations

from typing import Any

import torch

from bertds.engine.compile_lock import compiling
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import BertdsError, ConfigError
from bertds.optim.lamb import ShardedLamb
from bertds.optim.muon import ShardedMuon
from bertds.optim.weight_decay import is_decayed, split_parameters


def build_optimizer(
    model: torch.nn.Module, settings: DeepSpeedSettings, device: torch.device
) -> torch.optim.Optimizer:
    """Return an optimizer over the model's trainable parameters.

    Raises:
        ConfigError: nothing is trainable.
        BertdsError: DeepSpeed's optimizer could not be compiled; the message gives the remedy.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("the model has no trainable parameters")
    wanted = settings.optimizer
    if wanted.kind == "Lamb":
        # One group for all: ZeRO calls step() per group, and each call makes an all-reduce.
        return ShardedLamb(
            memory_order(named, device),
            lr=wanted.lr,
            betas=wanted.betas,
            eps=wanted.eps,
            weight_decay=wanted.weight_decay,
            variant=wanted.variant,
            bias_correction=wanted.bias_correction,
            min_coeff=wanted.min_coeff,
            max_coeff=wanted.max_coeff,
            is_decayed=is_decayed,
        )
    if wanted.kind == "Muon":
        return ShardedMuon(
            [p for _, p in named],
            lr=wanted.lr,
            momentum=wanted.momentum,
            iterations=wanted.ns_steps,
            betas=wanted.betas,
            eps=wanted.eps,
            weight_decay=wanted.weight_decay,
            shapes={name: tuple(p.shape) for name, p in named},
            is_decayed=is_decayed,
        )
    # Adam and AdamW need two groups, because biases and LayerNorm are not decayed.
    decayed, not_decayed = split_parameters(named)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": wanted.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    # Leave out a group without parameters, for example if only biases are trained.
    groups = [group for group in groups if group["params"]]
    numbers: dict[str, Any] = {"lr": wanted.lr, "betas": wanted.betas, "eps": wanted.eps}
    decoupled = wanted.kind == "AdamW"
    # DeepSpeed's kernels for offloading and for GPUs, torch's otherwise.
    if settings.offloads_optimizer and settings.values.get("zero_force_ds_cpu_optimizer", True):
        return _cpu_adam(groups, numbers, decoupled)
    if device.type == "cuda" and not settings.offloads_optimizer and not wanted.torch_adam:
        return _fused_adam(groups, numbers, decoupled)
    if decoupled:
        return torch.optim.AdamW(groups, fused=True, **numbers)
    return torch.optim.Adam(groups, fused=True, **numbers)


def memory_order(
    named: list[tuple[str, torch.nn.Parameter]], device: torch.device
) -> list[torch.nn.Parameter]:
    """Return parameters in the order in which ZeRO 1 and 2 place them in one flat buffer.

    On a GPU weights come before biases. A layer's query, key and value weights (and their biases)
    are then adjacent, so that one matrix product needs no copy of them; see
    ``bertds.model.attention.join``. Adam's two groups give this order anyway. Checkpoints identify
    tensors by name, so the order may change between runs.
    """
    if device.type == "cpu":
        return [parameter for _, parameter in named]
    decayed, not_decayed = split_parameters(named)
    return decayed + not_decayed


def _fused_adam(
    groups: list[dict[str, Any]], numbers: dict[str, Any], decoupled: bool
) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import FusedAdam

    try:
        with compiling("fused_adam"):
            return FusedAdam(groups, adam_w_mode=decoupled, **numbers)
    except Exception as error:
        raise BertdsError(
            f"DeepSpeed's FusedAdam could not be compiled ({_first_line(error)}); install the CUDA "
            "toolkit and ninja, or set optimizer.params.torch_adam=true to use torch's own"
        ) from error


def _cpu_adam(
    groups: list[dict[str, Any]], numbers: dict[str, Any], decoupled: bool
) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        with compiling("cpu_adam"):
            return DeepSpeedCPUAdam(groups, adamw_mode=decoupled, **numbers)
    except Exception as error:
        raise BertdsError(
            f"DeepSpeed's CPU Adam could not be compiled ({_first_line(error)}); install a C++ "
            "compiler and ninja, or set zero_force_ds_cpu_optimizer=false to use torch's own"
        ) from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
