"""What a recipe may ask for to be quicker, settled before the engine takes the model."""

from __future__ import annotations

import torch

from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from bertds.model.build import PreTrainingModel
from bertds.model.encoder import Encoder
from bertds.model.modern import ModernBertForMaskedLM


def speed_up(model: PreTrainingModel, config: Config, settings: DeepSpeedSettings) -> None:
    """Set FP8 products, and compile or record what the recipe wants compiled or recorded.

    Raises:
        ConfigError: the recipe asks for what its ZeRO stage or device does not have.
    """
    cuda = torch.cuda.is_available()
    if isinstance(model, ModernBertForMaskedLM):
        _check_modern(config)
    if config.model.fp8:
        check_fp8(config, settings.precision, torch.cuda.get_device_capability() if cuda else None)
        from bertds.model.fp8 import use_fp8

        use_fp8(_bert_encoder(model))
    if config.run.compile:
        if settings.stage == 3:
            raise ConfigError(
                "run.compile=true with zero_optimization.stage=3, whose parameters come and go "
                "within a layer; use stage 0, 1 or 2"
            )
        from bertds.model.compile_layers import compile_layers

        compile_layers(model, "cuda" if cuda else "cpu")
    if config.run.cuda_graphs:
        if not cuda or settings.stage == 3:
            raise ConfigError("run.cuda_graphs=true needs a GPU and ZeRO stage 0, 1 or 2")
        if config.model.activation_checkpointing != "none":
            raise ConfigError(
                "run.cuda_graphs=true with model.activation_checkpointing=full: recomputing reads "
                "the generator's state, which a recording cannot; choose one of them"
            )
        from bertds.model.cuda_graphs import use_graphs

        use_graphs(_bert_encoder(model))


def _check_modern(config: Config) -> None:
    for key, asked in (
        ("model.fp8", config.model.fp8), ("run.cuda_graphs", config.run.cuda_graphs),
    ):  # fmt: skip
        if asked:
            raise ConfigError(
                f"{key}=true is not made for model.style=modern; set {key}=false (run.compile "
                "works with it)"
            )


def _bert_encoder(model: PreTrainingModel) -> Encoder:
    assert isinstance(model, BertForPreTraining)
    return model.bert.encoder


def check_fp8(config: Config, precision: str, capability: tuple[int, int] | None) -> None:
    """Refuse FP8 where its products cannot be made.

    Args:
        config: the recipe.
        precision: of the DeepSpeed JSON.
        capability: the GPU's; None = no GPU.
    """
    if precision != "bf16":
        raise ConfigError(
            f'model.fp8=true needs "bf16": {{"enabled": true}} in the DeepSpeed JSON, found '
            f"{precision}"
        )
    if capability is not None and capability < (8, 9):
        raise ConfigError(
            f"model.fp8=true needs a GPU of compute capability 8.9 or higher (Ada, Hopper), this "
            f"one has {capability[0]}.{capability[1]}"
        )
    for name in ("hidden_size", "intermediate_size"):
        size = getattr(config.model, name)
        if size % 16:
            raise ConfigError(f"model.fp8=true: model.{name}={size} must be a multiple of 16")
