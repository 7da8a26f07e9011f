"""What a setting is called here, given its name in another project or in the DeepSpeed JSON.

For error messages: most unknown keys are not misspelt, but known to users by another name, or owned
by the other file.
"""

from __future__ import annotations

from collections.abc import Iterable

from bertds.config.suggest import nearest

IN_JSON = "deepspeed."
"""The prefix of DeepSpeed JSON keys, as in ``--set deepspeed.KEY=VALUE``."""

_JSON_SECTIONS = ("optimizer", "zero_optimization", "bf16", "fp16")

_LR = "deepspeed.optimizer.params.lr"
_MICRO_BATCH = "deepspeed.train_micro_batch_size_per_gpu"
OTHER_NAMES = {
    "lr": _LR,
    "learning_rate": _LR,
    "peak_lr": _LR,
    "betas": "deepspeed.optimizer.params.betas",
    "weight_decay": "deepspeed.optimizer.params.weight_decay",
    "train_batch_size": "deepspeed.train_batch_size",
    "batch_size": "deepspeed.train_batch_size",
    "global_batch_size": "deepspeed.train_batch_size",
    "train_micro_batch_size_per_gpu": _MICRO_BATCH,
    "micro_batch_size": _MICRO_BATCH,
    "per_device_train_batch_size": _MICRO_BATCH,
    "gradient_accumulation_steps": "deepspeed.gradient_accumulation_steps",
    "gradient_clipping": "deepspeed.gradient_clipping",
    "clipping": "deepspeed.gradient_clipping",
    "max_grad_norm": "deepspeed.gradient_clipping",
    "zero": "deepspeed.zero_optimization",
    "zero_stage": "deepspeed.zero_optimization.stage",
    "max_steps": "schedule.total_steps",
    "num_train_steps": "schedule.total_steps",
    "max_seq_length": "data.sequence_length",
    "max_seq_len": "data.sequence_length",
    "mlm_probability": "data.masked_lm_prob",
    "output_dir": "run.dir",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "logging_steps": "log.every_steps",
    "eval_steps": "validation.every_steps",
    "gradient_checkpointing": "model.activation_checkpointing",
}
"""Names of other projects, and names without their section -> keys here."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for an unknown key or section, or "" if nothing is close.

    Args:
        name: what the user wrote.
        known: the keys, and perhaps sections, that could have been meant.
    """
    last = name.rpartition(".")[2]
    ours = OTHER_NAMES.get(name, "")
    # A misspelling in the right section comes before another name in the wrong one.
    if not ours and last in OTHER_NAMES and not nearest(name, known, cutoff=0.8):
        ours = OTHER_NAMES[last]
    if not ours and name.partition(".")[0] in _JSON_SECTIONS:
        ours = IN_JSON + name
    if not ours:
        return nearest(name, known)
    owner = ", a key of the DeepSpeed JSON" if ours.startswith(IN_JSON) else ""
    return f" (did you mean {ours}{owner}?)"
