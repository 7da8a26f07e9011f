"""Runs NeMo's two BERT pre-training configurations: each key is mapped, or refused by name.

    bertds train --nemo-config bert_pretraining_from_text_config.yaml model.train_ds.data_file=F
    bertds train --nemo-config F.yaml --write DIR      # only write recipe.yaml and deepspeed.json

``batch_size`` is NeMo's: rows per device. The global batch is batch_size x devices x nodes x
accumulate_grad_batches. With a different number of processes, accumulation makes up the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertds.config.keys import dotted
from bertds.config.suggest import nearest
from bertds.errors import ConfigError
from bertds.system.json_fields import parse_json
from bertds.training.nemo.data_keys import map_data, map_tokenizer
from bertds.training.nemo.keys import Keys, Translation, resolve_references

Rows = Callable[[dict[str, Any]], int]
"""Takes our data section and returns the number of rows per epoch."""

# Keys without a counterpart here that do not change the result, each with the reason.
WITHOUT_EFFECT = {
    "trainer.accelerator": "the device is detected",
    "trainer.strategy": "training always uses DeepSpeed",
    "trainer.distributed_backend": "training always uses DeepSpeed",
    "trainer.amp_level": "set by precision",
    "trainer.replace_sampler_ddp": "the order depends only on the seed",
    "trainer.use_distributed_sampler": "the order depends only on the seed",
    "trainer.num_sanity_val_steps": "no sanity check is run",
    "trainer.checkpoint_callback": "checkpoints are always written",
    "trainer.enable_checkpointing": "checkpoints are always written",
    "trainer.logger": "metrics.jsonl is always written",
    "trainer.benchmark": "it affects only speed",
    "trainer.check_val_every_n_epoch": "set by val_check_interval",
    "model.train_ds.num_workers": "one thread reads ahead",
    "model.train_ds.pin_memory": "memory is always pinned on a GPU",
    "model.train_ds.use_cache": "not needed",
    "model.train_ds.drop_last": "batches continue into the next epoch",
    "model.validation_ds.num_workers": "",
    "model.validation_ds.pin_memory": "",
    "model.validation_ds.use_cache": "",
    "model.validation_ds.drop_last": "",
    "model.validation_ds.shuffle": "",
    "model.tokenizer.sample_size": "it is for SentencePiece",
    "model.tokenizer.data_file": "it is for SentencePiece",
    "model.tokenizer.vocab_size": "set by vocab.txt",
    "model.optim.sched.last_epoch": "a resumed run knows its step",
    "exp_manager.create_checkpoint_callback": "checkpoints are always written",
    "exp_manager.checkpoint_callback_params": "see checkpoint.* in the recipe",
    "exp_manager.resume_if_exists": "a run always resumes",
    "exp_manager.resume_ignore_no_checkpoint": "without a checkpoint, a run starts from step 0",
    "model.max_seq_length": "",
    "model.mask_prob": "",
    "model.short_seq_prob": "",
    "model.pretrained_model_name": "",
    "name": "",
    "do_training": "",
    "seed": "",
    "hydra": "",
    "model.nemo_path": "use bertds export and convert to write the model",
}
_MODEL_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)


def translate(
    values: Mapping[str, Any],
    source: str,
    rows_of: Rows,
    overrides: Mapping[str, Any] = {},
) -> Translation:
    """Map a NeMo configuration.

    Args:
        values: the content of the YAML file.
        source: its name, for messages.
        rows_of: counts the rows per epoch; called only if the file counts in epochs.
        overrides: dotted NeMo keys from the command line; they have precedence.

    Raises:
        ConfigError: a key or value is not supported; the message names it.
    """
    flat = dotted(values, keep_empty=True)
    # An override replaces a whole section, or a section replaces a single value.
    for key, value in overrides.items():
        for other in [
            name for name in flat if name.startswith(f"{key}.") or key.startswith(f"{name}.")
        ]:
            del flat[other]
        flat[key] = value
    keys = Keys(resolve_references(flat), source)
    result = Translation({}, {})
    _model(keys, result)
    map_data(keys, result)
    map_tokenizer(keys, result)
    _optimizer_and_batch(keys, result)
    _schedule(keys, result, rows_of)
    _run(keys, result)
    _refuse_the_rest(keys, result)
    return result


def _model(keys: Keys, result: Translation) -> None:
    """Map the encoder's sizes, its heads and the initial weights."""
    prefix = "model.language_model."
    name = keys.take(f"{prefix}pretrained_model_name")
    file = keys.take(f"{prefix}config_file", f"{prefix}bert_config_file")
    settings: dict[str, Any] = {}
    # NeMo files use either name for this section.
    for section in ("config", "bert_config"):
        keys.take(f"{prefix}{section}")
        for key in (*_MODEL_KEYS, "hidden_act", "vocab_size"):
            value = keys.take(f"{prefix}{section}.{key}")
            if value is not None:
                settings[key] = value
    start = keys.take(f"{prefix}lm_checkpoint", f"{prefix}bert_checkpoint")
    if file is not None:
        settings = _read_json(Path(file))
    elif not settings and name is not None:
        # Without a configuration NeMo starts from the named model's weights.
        from bertds.data.model_names import resolve
        from bertds.pretrained.hf_config import read_config

        folder = resolve(name)
        settings = dict(read_config(folder))
        start = start or str(folder)
    # NeMo's models are BERTs: only these keys, with one of two activations, can be expressed.
    model = {key: settings[key] for key in _MODEL_KEYS if key in settings}
    act = settings.get("hidden_act", "gelu")
    if act not in ("gelu", "gelu_new"):
        keys.fail(f"{prefix}config.hidden_act", act, "gelu, gelu_new")
    model["hidden_act"] = act
    # Without the next-sentence loss there is only the masked-LM head.
    only_mlm = bool(keys.take("model.only_mlm_loss", default=False))
    model["next_sentence"] = not only_mlm
    result.recipe["model"] = model
    keys.expect("model.num_tok_classification_layers", (1, None), "1: BERT's masked-LM head")
    layers = keys.take("model.num_seq_classification_layers")
    if layers not in (2, None):
        keys.fail("model.num_seq_classification_layers", layers, "2")
    if layers == 2 and not only_mlm:
        result.notes.append(
            "model.num_seq_classification_layers=2: the next-sentence head is that of BERT, a "
            "tanh layer (the pooler) and a linear layer; the two-layer head of NeMo has a ReLU "
            "between them"
        )
    if start is not None:
        result.recipe["init"] = {"from": str(start), "optimizer_state": "none"}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from None


_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "lamb": "Lamb", "fused_adam": "AdamW"}


def _optimizer_and_batch(keys: Keys, result: Translation) -> None:
    """Map the optimizer, the batch sizes, gradient clipping and the precision."""
    name = keys.take("model.optim.name", default="adamw")
    if name not in _OPTIMIZERS:
        keys.fail("model.optim.name", name, ", ".join(_OPTIMIZERS))
    parameters: dict[str, Any] = {"lr": keys.number("model.optim.lr", default=1e-3)}
    for theirs in ("weight_decay", "eps"):
        value = keys.number(f"model.optim.{theirs}")
        if value is not None:
            parameters[theirs] = value
    betas = keys.take("model.optim.betas")
    if betas is not None:
        parameters["betas"] = list(betas)
    # NeMo derives the global batch from the devices; DeepSpeed needs it as a number.
    devices = keys.take("trainer.devices", "trainer.gpus", default=1)
    if isinstance(devices, (list, tuple)):
        devices = len(devices)
    if devices in (-1, "auto", "-1"):
        import torch

        devices = torch.cuda.device_count() or 1
    if not isinstance(devices, int):
        keys.fail("trainer.devices", devices, "a number, a list or -1")
    nodes = int(keys.number("trainer.num_nodes", default=1))
    accumulate = int(keys.number("trainer.accumulate_grad_batches", default=1))
    micro = int(keys.number("model.train_ds.batch_size", default=16))
    deepspeed: dict[str, Any] = {
        "train_batch_size": micro * max(1, devices) * nodes * accumulate,
        "train_micro_batch_size_per_gpu": micro,
        "optimizer": {"type": _OPTIMIZERS[name], "params": parameters},
        "zero_optimization": {"stage": 1},
    }
    # 0 is Lightning's value for no clipping.
    clip = keys.number("trainer.gradient_clip_val", default=0.0)
    if clip:
        deepspeed["gradient_clipping"] = clip
    # "16-mixed" and "bf16-true" are the newer spellings of "16" and "bf16".
    precision = str(keys.take("trainer.precision", default="32")).split("-")[0]
    if precision not in ("16", "bf16", "32"):
        keys.fail("trainer.precision", precision, "16, bf16, 32 (and their -mixed, -true forms)")
    if precision != "32":
        import torch

        if precision == "16" and not torch.cuda.is_available():
            result.notes.append("trainer.precision=16: no GPU found, using bf16")
            precision = "bf16"
        deepspeed["fp16" if precision == "16" else "bf16"] = {"enabled": True}
    result.deepspeed = deepspeed


_DECAYS: dict[str, dict[str, Any]] = {
    "CosineAnnealing": {"decay": "cosine", "decay_from": "warmup_end"},
    "SquareRootAnnealing": {"decay": "polynomial", "power": 0.5, "decay_from": "start"},
    "WarmupAnnealing": {"decay": "polynomial", "power": 1.0, "decay_from": "warmup_end"},
    "PolynomialDecayAnnealing": {"decay": "polynomial", "power": 1.0, "decay_from": "warmup_end"},
    "WarmupPolicy": {"decay": "constant"},
}


def _schedule(keys: Keys, result: Translation, rows_of: Rows) -> None:
    """Map the learning-rate schedule and the number of steps."""
    prefix = "model.optim.sched."
    name = keys.take(f"{prefix}name")
    keys.take("model.optim.sched")
    if name is not None and name not in _DECAYS:
        keys.fail(f"{prefix}name", name, ", ".join(_DECAYS))
    schedule = dict(_DECAYS[name or "WarmupPolicy"])
    # The shape of the decay.
    power = keys.number(f"{prefix}power")
    if power is not None:
        if name != "PolynomialDecayAnnealing":
            keys.fail(f"{prefix}power", power, "null, except with PolynomialDecayAnnealing")
        schedule["power"] = power
    lowest = keys.number(f"{prefix}min_lr", default=0.0)
    if lowest:
        if name not in ("CosineAnnealing", "PolynomialDecayAnnealing"):
            keys.fail(f"{prefix}min_lr", lowest, f"0 with {name or 'no schedule'}")
        schedule["floor"] = lowest / result.deepspeed["optimizer"]["params"]["lr"]
    # Lightning counts in epochs or steps; ours is a number of steps.
    batch = result.deepspeed["train_batch_size"]
    epochs = keys.number("trainer.max_epochs")
    steps = keys.number("trainer.max_steps")
    per_epoch = 0
    interval = keys.number("trainer.val_check_interval")
    # A fractional interval means a share of the epoch. Counting rows reads the data, so it is done
    # only if something depends on it.
    if steps is None or steps < 0 or isinstance(interval, float):
        per_epoch = max(1, rows_of(result.recipe["data"]) // batch)
    if steps is None or steps < 0:
        if not epochs or epochs < 0:
            raise ConfigError(
                f"{keys.source}: neither trainer.max_steps nor trainer.max_epochs is set"
            )
        steps = int(epochs * per_epoch)
    schedule["total_steps"] = int(steps)
    # Warmup is given in steps or as a share of all steps; steps have precedence.
    warmup_steps = keys.number(f"{prefix}warmup_steps")
    warmup_ratio = keys.number(f"{prefix}warmup_ratio")
    if warmup_steps is not None:
        schedule["warmup_steps"] = int(warmup_steps)
    elif warmup_ratio is not None:
        schedule["warmup_ratio"] = warmup_ratio
    result.recipe["schedule"] = schedule
    if interval is not None:
        every = round(interval * per_epoch) if isinstance(interval, float) else int(interval)
        result.recipe["validation"]["every_steps"] = max(1, every)


def _run(keys: Keys, result: Translation) -> None:
    """Map the run folder, its name, logging and trackers."""
    root = keys.take("exp_manager.exp_dir", "exp_manager.root_dir", default="NeMo_experiments")
    name = keys.take("exp_manager.name", default=None) or keys.flat.get("name") or "BERT"
    result.recipe["run"] = {"dir": str(Path(root) / str(name)), "name": str(name)}
    seed = keys.flat.get("seed")
    if seed is not None:
        result.recipe["run"]["seed"] = int(seed)
    every = keys.number("trainer.log_every_n_steps", "trainer.row_log_interval")
    if every is not None:
        result.recipe["log"] = {"every_steps": max(1, int(every))}
    tracking: dict[str, Any] = {}
    if keys.take("exp_manager.create_tensorboard_logger"):
        tracking["tensorboard"] = True
    if keys.take("exp_manager.create_wandb_logger"):
        tracking["wandb"] = "online"
    project = keys.take("exp_manager.wandb_logger_kwargs.project")
    if project is not None:
        tracking["wandb_project"] = str(project)
    keys.take("exp_manager.wandb_logger_kwargs.name", "exp_manager.wandb_logger_kwargs")
    if tracking:
        result.recipe["tracking"] = tracking


def _refuse_the_rest(keys: Keys, result: Translation) -> None:
    """Refuse every key that was not read, except those that are known to have no effect."""
    for key in keys.flat:
        if key in keys.taken:
            continue
        reasons = (why for name, why in WITHOUT_EFFECT.items() if f"{key}.".startswith(f"{name}."))
        reason = next(reasons, None)
        if reason is None:
            known = [*keys.taken, *WITHOUT_EFFECT]
            raise ConfigError(
                f"{keys.source}: {key}: unknown or not supported{nearest(key, known)}"
            )
        if reason:
            result.notes.append(f"{key} is not used: {reason}")
