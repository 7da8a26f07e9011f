"""What tests of forecasts have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertds.config.load import load_config
from bertds.config.recipe import Config, ModelConfig
from bertds.cost_model.memory import Shape
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json

LARGE = ModelConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)

MODERN_BASE = ModelConfig(
    style="modern", num_hidden_layers=22, intermediate_size=1152, next_sentence=False
)


def phase(number: int, repository: Path, name: str = "large") -> Config:
    return load_config(repository / f"bertds/recipes/{name}_phase{number}.yaml")


def settings(repository: Path, name: str, **changes: Any) -> DeepSpeedSettings:
    return load_deepspeed_json(repository / f"ds_configs/{name}.json", changes)


def shape_of(model: ModelConfig, rows: int, **changes: Any) -> Shape:
    """Return 64 tokens per row in float32 on a CPU, but for ``changes``."""
    values: dict[str, Any] = {
        "model": model,
        "vocab_size": 1024,
        "sequence_length": 64,
        "tokens_per_row": 64.0,
        "masked_per_row": 9.0,
        "micro_batch": rows,
        "precision": "fp32",
        "stage": 1,
        "world_size": 1,
        "optimizer": "AdamW",
        "on_cpu": True,
    }
    return Shape(**{**values, **changes})
