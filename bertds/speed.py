"""What a recipe may ask for to be quicker, settled before the engine takes the model."""

from __future__ import annotations

import torch

from bertds.config import Config
from bertds.engine.config_check import DeepSpeedSettings
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining


def speed_up(model: BertForPreTraining, config: Config, settings: DeepSpeedSettings) -> None:
    """Compile or record what the recipe wants compiled or recorded.

    Raises:
        ConfigError: the recipe asks for what its ZeRO stage or device does not have.
    """
    cuda = torch.cuda.is_available()
    if config.run.compile:
        if settings.stage == 3:
            raise ConfigError(
                "run.compile=true with zero_optimization.stage=3, whose parameters come and go "
                "within a layer; use stage 0, 1 or 2"
            )
        from bertds.model.compiled import compile_layers

        compile_layers(model, "cuda" if cuda else "cpu")
    if config.run.cuda_graphs:
        if not cuda or settings.stage == 3:
            raise ConfigError("run.cuda_graphs=true needs a GPU and ZeRO stage 0, 1 or 2")
        from bertds.model.graphs import use_graphs

        use_graphs(model.bert.encoder)
