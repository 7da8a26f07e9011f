"""The available optimizers and their parameters, and why others are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bertds.config.ranges import LARGEST, SMALLEST, Range
from bertds.config.suggest import nearest_or_all
from bertds.errors import ConfigError
from bertds.system.json_fields import is_finite

Kind = Literal["Adam", "AdamW", "Lamb", "Muon"]
Variant = Literal["nvidia", "deepspeed", "paper"]

# Removed by DeepSpeed's pull request 8490 (2026); 0.19.8 has no deepspeed/runtime/fp16/onebit.
_REMOVED = "DeepSpeed has removed its 1-bit optimizers (0.19.8 has none); use Lamb or AdamW"
_MOMENTS = (
    "checkpoints, resuming and the hand-over between phases require an optimizer with two "
    "moments; use Lamb or AdamW"
)
REFUSED = {
    "onebitadam": _REMOVED,
    "onebitlamb": _REMOVED,
    "zerooneadam": _REMOVED,
    "fusedlamb": 'it is not exact under ZeRO; use "Lamb" with "variant": "deepspeed", its rule',
    "fusedadam": 'use "AdamW", which is DeepSpeed\'s FusedAdam on a GPU',
    "cpuadam": 'use "AdamW" with zero_optimization.offload_optimizer.device="cpu"',
    "deepspeedcpuadam": 'use "AdamW" with zero_optimization.offload_optimizer.device="cpu"',
    "adagrad": _MOMENTS,
    "lion": _MOMENTS,
    "sgd": _MOMENTS,
    "muadam": "it needs the mup package and a model scaled for it; " + _MOMENTS,
    "muadamw": "it needs the mup package and a model scaled for it; " + _MOMENTS,
    "musgd": "it needs the mup package and a model scaled for it; " + _MOMENTS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """An optimizer as the DeepSpeed JSON asks for it, checked and complete."""

    kind: Kind
    """AdamW decays weights directly; Adam adds the decay to the gradient (L2); Lamb is LAMB; Muon
    is Muon for hidden matrices and AdamW for the rest."""
    lr: float
    """Peak learning rate. At each step it is multiplied by the factor from the recipe's schedule
    section."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Constant added to the square root of the second moment."""
    weight_decay: float = 0.0
    """Weight decay, applied to all parameters except biases and LayerNorm weights."""
    bias_correction: bool = True
    """Divide the moments by 1 - beta ** t. Only Lamb can turn this off; Adam always applies bias
    correction."""
    torch_adam: bool = False
    """On a GPU, use torch's fused AdamW, which needs no compiler, instead of DeepSpeed's."""
    variant: Variant = "nvidia"
    """Lamb: which variant of LAMB to use: nvidia, deepspeed or paper (see bertds/optim/lamb.py)."""
    min_coeff: float = 0.0
    """Lamb: lowest trust ratio."""
    max_coeff: float = math.inf
    """Lamb: highest trust ratio."""
    momentum: float = 0.95
    """Muon: momentum for the weight matrices of the hidden layers. betas and eps apply to AdamW,
    which updates the other parameters."""
    ns_steps: int = 5
    """Muon: Newton-Schulz iterations."""


_NUMBERS = {
    "lr": Range(0, LARGEST),
    # Unused words have a gradient of 0: without eps, their update would be 0 / 0.
    "eps": Range(SMALLEST, 1),
    "weight_decay": Range(0, LARGEST),
    "min_coeff": Range(0, LARGEST),
    "max_coeff": Range(SMALLEST, LARGEST),  # 0 would make every update 0
    "momentum": Range(0, 1),
}
_COMMON = ("lr", "betas", "eps", "weight_decay", "bias_correction")
_PARAMETERS = {
    "adam": (*_COMMON, "adam_w_mode", "torch_adam", "fp32_optimizer_states"),
    "adamw": (*_COMMON, "adam_w_mode", "torch_adam", "fp32_optimizer_states"),
    "lamb": (*_COMMON, "variant", "min_coeff", "max_coeff"),
    "muon": ("lr", "betas", "eps", "weight_decay", "momentum", "ns_steps"),
}
_REFUSED_PARAMETERS = {
    "max_grad_norm": "use the top-level key gradient_clipping",
    "amsgrad": "neither DeepSpeed's FusedAdam nor LAMB supports it",
    "eps_inside_sqrt": "no published BERT recipe uses it",
    "foreach": "the fused implementation is always used",
    "fused": "the fused implementation is always used",
}
# DeepSpeed's FusedLamb clamps the trust ratio by default; the other variants do not.
LAMB_DEFAULTS: dict[str, dict[str, float]] = {
    "nvidia": {"eps": 1e-6, "weight_decay": 0.01, "min_coeff": 0.0, "max_coeff": math.inf},
    "paper": {"eps": 1e-6, "weight_decay": 0.01, "min_coeff": 0.0, "max_coeff": math.inf},
    "deepspeed": {"eps": 1e-8, "weight_decay": 0.0, "min_coeff": 0.01, "max_coeff": 10.0},
}


def parse_optimizer(section: Mapping[str, Any]) -> OptimizerSettings:
    """Check the JSON's ``optimizer`` section.

    Args:
        section: ``{"type": ..., "params": {...}}``.

    Raises:
        ConfigError: unknown type or parameter, missing learning rate, or a wrong value.
    """
    name = section.get("type")
    known = "Lamb, AdamW, Adam, Muon"
    if not isinstance(name, str):
        raise ConfigError(f"optimizer.type={name!r} must be one of {known}")
    key = name.lower().replace("_", "").replace("-", "")
    if key not in _PARAMETERS:
        reason = REFUSED.get(key, f"unknown optimizer; allowed: {known}")
        raise ConfigError(f"optimizer.type={name!r} is not available: {reason}")
    # A refused parameter gets its own reason; others get the nearest allowed name.
    params = section.get("params", {})
    if not isinstance(params, Mapping):
        raise ConfigError(f"optimizer.params={params!r} must be an object")
    allowed = _PARAMETERS[key]
    for parameter in params:
        if parameter in allowed:
            continue
        full = f"optimizer.params.{parameter}"
        if parameter in _REFUSED_PARAMETERS:
            raise ConfigError(f"{full} is not supported: {_REFUSED_PARAMETERS[parameter]}")
        raise ConfigError(
            f"{full} is not a parameter of {name}{nearest_or_all(parameter, allowed)}"
        )
    return _build(key, params, "optimizer.params")


def _build(key: str, params: Mapping[str, Any], where: str) -> OptimizerSettings:
    # Values in the JSON replace defaults; a variant of LAMB has its own defaults.
    values: dict[str, Any] = {}
    for name, numbers in _NUMBERS.items():
        if name in params:
            values[name] = _number(params[name], f"{where}.{name}", numbers)
    if "lr" not in values:
        raise ConfigError(f"{where}.lr is missing: it is the peak learning rate")
    if "betas" in params:
        betas = params["betas"]
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ConfigError(f"{where}.betas={betas!r} must be a list of two numbers")
        values["betas"] = tuple(_number(b, f"{where}.betas", Range(0, 1)) for b in betas)
        if max(values["betas"]) >= 1.0:
            raise ConfigError(f"{where}.betas={betas!r} must be below 1")
    flags = {
        name: _flag(params[name], f"{where}.{name}")
        for name in ("bias_correction", "adam_w_mode", "torch_adam", "fp32_optimizer_states")
        if name in params
    }
    if key == "lamb":
        variant = params.get("variant", "nvidia")
        if variant not in LAMB_DEFAULTS:
            allowed = ", ".join(LAMB_DEFAULTS)
            raise ConfigError(f"{where}.variant={variant!r} must be one of {allowed}")
        settings = OptimizerSettings(
            **{**LAMB_DEFAULTS[variant], **values},
            kind="Lamb",
            variant=variant,
            bias_correction=flags.get("bias_correction", True),
        )
        if settings.min_coeff > settings.max_coeff:
            raise ConfigError(
                f"{where}.min_coeff={settings.min_coeff} exceeds "
                f"{where}.max_coeff={settings.max_coeff}"
            )
        return settings
    if key == "muon":
        return _muon(values, params.get("ns_steps", 5), where)
    # Adam and AdamW: settings of which only one value is supported.
    if not flags.get("bias_correction", True):
        raise ConfigError(f"{where}.bias_correction=false is only supported by Lamb")
    if not flags.get("fp32_optimizer_states", True):
        raise ConfigError(f"{where}.fp32_optimizer_states=false: moments are always float32 here")
    # In DeepSpeed "Adam" means AdamW unless adam_w_mode is false.
    decoupled = flags.get("adam_w_mode", True)
    if key == "adamw" and not decoupled:
        raise ConfigError(f'{where}.adam_w_mode=false contradicts "AdamW"; use "Adam"')
    return OptimizerSettings(
        **values, kind="AdamW" if decoupled else "Adam", torch_adam=flags.get("torch_adam", False)
    )


def _muon(values: dict[str, Any], ns_steps: object, where: str) -> OptimizerSettings:
    if values.get("momentum", 0.0) >= 1.0:
        raise ConfigError(f"{where}.momentum={values['momentum']!r} must be below 1")
    if isinstance(ns_steps, bool) or not isinstance(ns_steps, int) or not 1 <= ns_steps <= 20:
        raise ConfigError(f"{where}.ns_steps={ns_steps!r} must be a whole number from 1 to 20")
    return OptimizerSettings(**values, kind="Muon", ns_steps=ns_steps)


def _number(value: object, where: str, allowed: Range) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise ConfigError(f"{where}={value!r:.40} must be a number")
    if problem := allowed.problem(value):
        raise ConfigError(f"{where}={value!r} {problem}")
    return float(value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}={value!r} must be true or false")
    return value
