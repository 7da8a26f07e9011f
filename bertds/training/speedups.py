"""Speed settings of a run, applied before the engine takes the model.

``model.attention_kernel``, ``run.compile``, ``run.fp8`` and ``run.cuda_graphs`` are each checked
against the device, the ZeRO stage and the installed packages. On a GPU the layers of BERT run fused
(:mod:`bertds.model.fused_layer`), and those of the modern encoder run compiled.
"""

from __future__ import annotations

import torch

from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import ConfigError
from bertds.model.attention_kernels import activate_kernel, missing_for_flash
from bertds.model.bert import BertForPreTraining
from bertds.model.build import PreTrainingModel
from bertds.model.kernels import kernels_run_on
from bertds.system.logs import log

Capability = tuple[int, int] | None
"""A GPU's compute capability; None = no GPU."""


def apply_speedups(model: PreTrainingModel, config: Config, settings: DeepSpeedSettings) -> None:
    """Choose the attention kernel; fuse, compile, record or convert layers as the recipe asks.

    Logs what was chosen, in one line.

    Raises:
        ConfigError: the ZeRO stage, device or installation does not support a setting.
    """
    cuda = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if cuda else None
    words = [f"attention: {attention_words(config, settings.precision, capability)}"]
    # FP8 replaces linear layers, so it comes before compilation.
    if config.run.fp8:
        check_fp8(config, settings, capability)
        from bertds.model.fp8_layers import use_fp8

        words.append(f"FP8: {use_fp8(model.encoder_layers())} linear layers (experimental)")
    # Fusing and compiling exclude each other: both replace the forward pass of a layer.
    if wants_fused(config, settings, capability):
        from torch.nn.attention import current_flash_attention_impl

        from bertds.model.fused_layer import fuse_layers, longest_own_row

        assert isinstance(model, BertForPreTraining)  # checked above
        package = current_flash_attention_impl()
        longest = fuse_layers(model, longest_own_row(config.model.attention_kernel, package))
        kernel = f" (our own attention kernels for rows of up to {longest} tokens)"
        words.append(f"layers: fused{kernel if longest else ''}")
    elif wants_compile(config, settings.stage, cuda=cuda):
        from bertds.model.compile_layers import compile_layers

        compiled = compile_layers(model, "cuda" if cuda else "cpu")
        if not compiled and config.run.fp8:
            raise ConfigError(
                "run.fp8=true needs torch.compile, which is not available on this machine"
            )
        words.append("layers: compiled" if compiled else "layers: not compiled")
    # CUDA graphs record the layers in their final form.
    if config.run.cuda_graphs:
        check_graphs(config, settings.stage, capability)
        from bertds.model.cuda_graphs import use_graphs

        assert isinstance(model, BertForPreTraining)  # checked above
        use_graphs(model.bert.encoder)
        words.append("encoder: recorded CUDA graphs")
    log.info("%s", "; ".join(words))


def attention_words(config: Config, precision: str, capability: Capability) -> str:
    """Activate the attention kernel and return a description of it for the log.

    Args:
        config: the recipe.
        precision: of the DeepSpeed JSON.
        capability: the GPU's.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    model = config.model
    return activate_kernel(
        model.attention_kernel,
        model.attention_probs_dropout_prob,
        dtype,
        model.hidden_size // model.num_attention_heads,
        capability,
    )


def wants_fused(config: Config, settings: DeepSpeedSettings, capability: Capability) -> bool:
    """Return whether the layers shall run as :class:`bertds.model.fused_layer.FusedLayer`.

    Args:
        config: the recipe.
        settings: the DeepSpeed JSON.
        capability: the GPU's.
    """
    # FP8, compilation and ZeRO-3 work on the layer's modules, which fusing bypasses.
    if config.run.compile != "auto" or config.run.fp8 or capability is None or settings.stage == 3:
        return False
    model = config.model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
    if model.style == "modern" or model.attention_kernel == "padded" or dtype is None:
        return False
    head_width = model.hidden_size // model.num_attention_heads
    return not missing_for_flash(dtype, head_width, capability) and kernels_run_on("cuda")


def wants_compile(config: Config, stage: int, *, cuda: bool) -> bool:
    """Return whether the layers shall be compiled.

    Args:
        config: the recipe.
        stage: of ZeRO.
        cuda: whether the run is on a GPU.

    Raises:
        ConfigError: ``run.compile=true`` under ZeRO-3.
    """
    asked = config.run.compile
    if asked == "auto":
        # Compiling inside a recording has not been tried on a GPU.
        return cuda and stage < 3 and not config.run.cuda_graphs
    if asked and stage == 3:
        raise ConfigError(
            "run.compile=true cannot be combined with zero_optimization.stage=3, which gathers "
            "and releases parameters within a layer; use stage 0, 1 or 2, or run.compile=auto"
        )
    return asked


def check_graphs(config: Config, stage: int, capability: Capability) -> None:
    """Refuse CUDA graphs where they cannot be recorded.

    Raises:
        ConfigError: the model, the device, the ZeRO stage or recomputation does not allow them.
    """
    if config.model.style == "modern":
        raise ConfigError(
            "run.cuda_graphs=true does not support model.style=modern; set run.cuda_graphs=false "
            "(run.compile is supported)"
        )
    if capability is None or stage == 3:
        found = "this machine has no GPU" if capability is None else "found stage 3"
        raise ConfigError(f"run.cuda_graphs=true needs a GPU and ZeRO stage 0, 1 or 2; {found}")
    if config.model.activation_checkpointing != "none":
        raise ConfigError(
            "run.cuda_graphs=true cannot be combined with model.activation_checkpointing=full, "
            "because recomputation reads the state of the random generator; use only one of them"
        )


def check_fp8(config: Config, settings: DeepSpeedSettings, capability: Capability) -> None:
    """Refuse FP8 where the GPU does not support it, or layers would not be compiled.

    Args:
        config: the recipe.
        settings: the DeepSpeed JSON.
        capability: the GPU's.
    """
    if settings.precision != "bf16":
        raise ConfigError(
            f'run.fp8=true needs "bf16": {{"enabled": true}} in the DeepSpeed JSON, found '
            f"{settings.precision}"
        )
    if capability is None or capability < (8, 9):
        found = "there is none" if capability is None else "this one has {}.{}".format(*capability)
        raise ConfigError(
            f"run.fp8=true needs a GPU of compute capability 8.9 or higher (Ada, Hopper); {found}"
        )
    if settings.stage == 3:
        raise ConfigError(
            "run.fp8=true needs run.compile and therefore ZeRO stage 0, 1 or 2, found 3"
        )
    if config.run.cuda_graphs:
        raise ConfigError(
            "run.fp8=true cannot be combined with run.cuda_graphs=true; use only one of them"
        )
    # torch._scaled_mm multiplies FP8 matrices only if their sides are multiples of 16.
    for name in ("hidden_size", "intermediate_size"):
        size = getattr(config.model, name)
        if size % 16:
            raise ConfigError(f"run.fp8=true: model.{name}={size} must be a multiple of 16")
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"run.fp8=true requires torchao ({error}); install it with: pip install 'bertds[fp8]'"
        ) from None
