"""Proposes a first run: a model, batch and number of steps for given devices, hours and text.

```text
size    the largest that sees 20 tokens per parameter (Hoffmann et al. 2022, arXiv:2203.15556),
        where the corpus counts at most 40 times, as in BERT (Devlin et al. 2018)
batch   4,096 rows (Izsak et al. 2021, arXiv:2104.07705), halved down to 256 if the time is too
        short for 2,000 steps; 32 on a CPU, as in the demo
lr      Izsak's 1e-3 at 4,096 rows, times the square root of the batch's share; ELECTRA's 5e-4 for
        small models; the demo's 2e-3 for the smallest
```

The schedule follows the clock, so that the learning rate reaches zero when the hours are over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bertds.config.load import load_config
from bertds.cost_model.flops import parameter_count
from bertds.cost_model.hardware import Hardware
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import ConfigError
from bertds.plan.forecast import Forecast, forecast

SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width: Turc et al. 2019 (arXiv:1908.08962), Devlin et al. 2018."""
TOKENS_PER_PARAMETER = 20
EPOCHS = 40
FEWEST_STEPS = 2000
WITHOUT_BF16 = {"v100"}
NEVER_REACHED = 1_000_000
"""``schedule.total_steps`` of a run that ends by the clock."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A recipe, its DeepSpeed JSON, and the forecast for them."""

    size: str
    recipe: dict[str, Any]
    deepspeed: dict[str, Any]
    plan: Forecast
    parameters: int
    why: str
    """Why this size was chosen, in one sentence."""


def propose(
    hardware: Hardware,
    *,
    nodes: int,
    devices_per_node: int,
    hours: float,
    vocab_size: int,
    corpus_tokens: float,
    size: str = "",
) -> Proposal:
    """Return the proposal.

    Args:
        hardware: the kind of device.
        nodes: number of machines.
        devices_per_node: devices per machine; processes on a CPU.
        hours: training time.
        vocab_size: number of tokens of the vocabulary.
        corpus_tokens: approximate number of tokens of the corpus.
        size: a name of ``SIZES``; "" = the largest for which time and corpus are sufficient.

    Raises:
        ConfigError: the hours are too short for a step, or no model fits the memory.
    """
    if size and size not in SIZES:
        raise ConfigError(f"--model {size}: choose one of {', '.join(SIZES)}")
    best: Proposal | None = None
    # From small to large: a larger size replaces a smaller one if it still sees enough tokens.
    for name in [size] if size else SIZES:
        found = _of_size(name, hardware, nodes, devices_per_node, hours, vocab_size)
        if found is None:
            continue
        tokens = found.plan.tokens
        enough = min(tokens, EPOCHS * corpus_tokens) >= TOKENS_PER_PARAMETER * found.parameters
        scarce = "time" if tokens < EPOCHS * corpus_tokens else "text"
        if size:
            best = replace(found, why="as requested" if enough else f"limited by {scarce}")
        elif best is None or enough:
            best = replace(
                found,
                why=f"the largest that can be trained on {TOKENS_PER_PARAMETER} tokens per "
                "parameter"
                if enough
                else f"the smallest; limited by {scarce}",
            )
    if best is None:
        what = f"the model {size}" if size else "a model"
        raise ConfigError(
            f"{devices_per_node * nodes} x {hardware.name}, {hours:g} hours: {what} does not fit "
            "in memory, or the time is too short for 10 steps"
        )
    return best


def _of_size(
    name: str, hardware: Hardware, nodes: int, per_node: int, hours: float, vocab_size: int
) -> Proposal | None:
    # Start with the large batch, and halve it until there are enough steps.
    on_cpu = hardware.name == "cpu"
    devices = nodes * per_node
    batch = 32 if on_cpu else 4096
    while True:
        rows = -(-batch // devices)  # every device has the same number of rows,
        unit = 64 if rows >= 64 else 4  # which micro batches divide
        rows = -(-rows // unit) * unit
        found = _fitting(name, rows * devices, hardware, nodes, per_node, hours, vocab_size)
        if found is None or found.plan.steps >= FEWEST_STEPS or batch <= (32 if on_cpu else 256):
            return found if found is not None and found.plan.steps >= 10 else None
        batch //= 2


def _fitting(
    name: str,
    batch: int,
    hardware: Hardware,
    nodes: int,
    per_node: int,
    hours: float,
    vocab_size: int,
) -> Proposal | None:
    """Return the proposal with the largest micro batch that fits, at the lowest ZeRO stage."""
    # A lower stage communicates less, and a larger micro batch is faster, so these are tried first.
    recipe = _recipe(name, hours)
    for stage in (1, 2, 3):
        micro = 16 if hardware.name == "cpu" else 256
        while micro:
            values = _deepspeed(name, batch, micro, stage, hardware)
            config, settings = load_config(recipe), check_deepspeed_values(values)
            # Every rank must be able to divide its rows into micro batches.
            rows = batch // (nodes * per_node)
            if rows % min(micro, rows) == 0:
                plan = forecast(
                    config,
                    settings,
                    hardware,
                    nodes=nodes,
                    devices_per_node=per_node,
                    vocab_size=vocab_size,
                )
                if plan.fits:
                    _set_cadence(recipe, plan)
                    parameters = parameter_count(config.model, vocab_size)
                    return Proposal(name, recipe, values, plan, parameters, "")
            micro //= 2
    return None


def _recipe(name: str, hours: float) -> dict[str, Any]:
    layers, width = SIZES[name]
    # A small model does not overfit in a few steps.
    dropout = 0.0 if name in ("tiny", "mini") else 0.1
    return {
        "run": {"dir": "run", "deepspeed_config": "./deepspeed.json"},
        "model": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "next_sentence": False,
        },
        "data": {
            "path": "data",
            "sequence_length": 128,
            "max_predictions_per_sequence": 20,
            "pairs": "none",
        },
        "schedule": {
            "total_steps": NEVER_REACHED,
            "clock_hours": hours,
            "warmup_ratio": 0.06,
            "decay": "polynomial",
            "decay_from": "warmup_end",
        },
    }


def _deepspeed(name: str, batch: int, micro: int, stage: int, hardware: Hardware) -> dict[str, Any]:
    if name in ("tiny", "mini"):
        rate = 2e-3
    elif name in ("small", "medium"):
        rate = 5e-4
    else:
        rate = float(f"{1e-3 * (batch / 4096) ** 0.5:.2g}")
    params: dict[str, Any] = {"lr": rate, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}
    values: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "optimizer": {"type": "AdamW", "params": params},
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
    }
    if hardware.name != "cpu":
        params["torch_adam"] = True  # DeepSpeed's own Adam would need a CUDA compiler
        values["fp16" if hardware.name in WITHOUT_BF16 else "bf16"] = {"enabled": True}
    return values


def _set_cadence(recipe: dict[str, Any], plan: Forecast) -> None:
    """Set 10 validations, and a checkpoint every 15 minutes but at least 4 in total."""
    tenth = max(1, plan.steps // 10)
    quarter = max(1, round(900 / plan.step.total))
    recipe["log"] = {"every_steps": max(1, min(50, plan.steps // 50))}
    recipe["validation"] = {"every_steps": tenth}
    recipe["checkpoint"] = {"every_steps": min(quarter, max(1, plan.steps // 4)), "keep_last": 2}
