"""Which settings a resumed run may change, for the recipe and the DeepSpeed JSON together.

*fixed*: they decide what the model is and which samples make up which step; a run that changes one
is a different run. *announced*: they change the result from here on; the log names each with its
old and new value, and ``settings.jsonl`` in the run folder records them. *free*: they change where
things are, how often something is written, or how fast the run is.

The keys of the JSON carry the prefix ``deepspeed.``, as on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bertds.config.keys import dotted
from bertds.config.load import REMOVED_KEYS, read_yaml, to_dict
from bertds.config.other_names import IN_JSON
from bertds.config.recipe import Config
from bertds.data.model_names import ALIASES, MODELS
from bertds.errors import ConfigError, DataError
from bertds.monitor.run_files import read_object
from bertds.monitor.setting_lines import Change
from bertds.system.secrets import masked
from bertds.system.storage import is_url

Rule = Literal["fixed", "announced", "free"]

RULES: dict[str, Rule] = {
    "model": "fixed",
    "model.activation_checkpointing": "free",
    "model.attention_kernel": "free",
    "data": "free",
    "data.sequence_length": "fixed",
    "data.max_predictions_per_sequence": "fixed",
    "data.masked_lm_prob": "fixed",
    "data.masked_lm_prob_end": "fixed",
    "data.masked_lm_prob_steps": "fixed",
    "data.short_seq_prob": "fixed",
    "data.whole_word_masking": "fixed",
    "data.ngram": "fixed",
    "data.pairs": "fixed",
    "data.rare_token_power": "announced",
    "schedule": "announced",
    "schedule.batch_from": "fixed",
    "schedule.batch_ramp_steps": "fixed",
    "init": "free",
    "guard": "announced",
    "guard.peer_timeout_seconds": "free",
    "guard.progress_timeout_seconds": "free",
    "guard.meeting_timeout_seconds": "free",
    "run": "free",
    "run.seed": "fixed",
    "run.fp8": "announced",
    "log": "free",
    "validation": "free",
    "checkpoint": "free",
    "tracking": "free",
    "notify": "free",
    "deepspeed": "free",
    "deepspeed.train_batch_size": "fixed",
    "deepspeed.optimizer": "announced",
    "deepspeed.optimizer.type": "fixed",
    "deepspeed.optimizer.params.variant": "fixed",
    "deepspeed.gradient_clipping": "announced",
    "deepspeed.bf16": "announced",
    "deepspeed.fp16": "announced",
    "deepspeed.torch_autocast": "announced",
    "deepspeed.data_types": "announced",
}
"""The rule of each key prefix. The longest matching prefix decides."""


def rule_of(key: str) -> Rule:
    """Return the rule of a dotted key.

    Raises:
        KeyError: no prefix of the key is in the table.
    """
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        rule = RULES.get(".".join(parts[:end]))
        if rule is not None:
            return rule
    raise KeyError(key)


def changes(run: Path, config: Config, deepspeed: Mapping[str, Any]) -> list[Change]:
    """Compare the settings of this start with those of the run's last one.

    Args:
        run: the run folder; without a ``config.yaml`` there was no previous start.
        config: the recipe of this start.
        deepspeed: the DeepSpeed JSON of this start, as nested values.

    Returns:
        The announced settings that differ.

    Raises:
        ConfigError: a fixed setting differs; the message names it with both values.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return []
    file_before, json = read_yaml(file), run / "deepspeed.json"
    # Without a deepspeed.json in the folder only the recipes are compared.
    json_before = read_object(json, []) if json.is_file() else None
    return _compare(f"{run}", "run.dir", file_before, json_before, config, deepspeed)


def changes_of_checkpoint(
    where: str,
    place_key: str,
    manifest: Mapping[str, Any],
    config: Config,
    deepspeed: Mapping[str, Any],
) -> list[Change]:
    """Compare the settings of this start with those that a checkpoint was trained with.

    Args:
        where: the run folder, or the URL of a copied checkpoint, for the message.
        place_key: the setting that names it.
        manifest: of the checkpoint.
        config: the recipe of this start.
        deepspeed: the DeepSpeed JSON of this start, as nested values.

    Returns:
        The announced settings that differ.

    Raises:
        ConfigError: a fixed setting differs; the message names it with both values.
    """
    recipe, json = manifest.get("recipe", {}), manifest.get("deepspeed")
    return _compare(masked(where), place_key, recipe, json, config, deepspeed)


def _compare(
    where: str,
    place_key: str,
    recipe_before: Mapping[str, Any],
    json_before: Mapping[str, Any] | None,
    config: Config,
    deepspeed: Mapping[str, Any],
) -> list[Change]:
    # Compare both files as one table of dotted keys.
    before = dotted(recipe_before)
    _refuse_removed(where, place_key, before)
    now = dotted(to_dict(config))
    if json_before is not None:
        before |= dotted(json_before, IN_JSON)
        now |= dotted(deepspeed, IN_JSON)
        for values in (before, now):  # the only fixed key of the JSON that may be absent
            values.setdefault(f"{IN_JSON}optimizer.params.variant", "nvidia")
    for key, value in now.items():
        # The previous start used the default of a key that did not exist then.
        if rule_of(key) == "fixed" and key in before and before[key] != value:
            raise ConfigError(
                f"{where}: this run started with {key}={before[key]}, but now {key}={value}; "
                f"restore the value, or choose another {place_key}"
            )
    # A JSON key that appears or disappears has changed too: DeepSpeed's default was used before.
    known = [key for key in now if key in before or key.startswith(IN_JSON)]
    gone = [key for key in before if key.startswith(IN_JSON) and key not in now]
    return [
        Change(key, before.get(key), now.get(key))
        for key in (*known, *gone)
        if rule_of(key) == "announced" and before.get(key) != now.get(key)
    ]


def is_done(run: Path, config: Config, deepspeed: Mapping[str, Any]) -> bool:
    """Return whether nothing is left to train; a longer schedule continues a finished run.

    Args:
        run: the run folder.
        config: the recipe of this start.
        deepspeed: the DeepSpeed JSON of this start.

    Raises:
        ConfigError: the run is done, and this start asks for a change that would have no effect.
        DataError: the data, vocabulary, held-out data or prompts do not exist.
    """
    # A folder without the settings is not a run, whatever else is in it.
    if not (run / "DONE").is_file() or not (run / "config.yaml").is_file():
        return False
    asked = [
        change
        for change in changes(run, config, deepspeed)
        # Filled in if the JSON omits it; for fp16, versions that trained older runs did not.
        if (change.key, change.before) != (f"{IN_JSON}data_types.grad_accum_dtype", None)
    ]
    done = read_object(run / "DONE", [])
    steps, best = done.get("step"), done.get("best_mlm_loss")
    # The target loss ends a run before its last step, so it is checked first.
    target = config.validation.stop_at_loss
    if target is not None and isinstance(best, float) and best <= target:
        return True
    # A longer schedule continues the run, and so does a larger clock budget.
    schedule = config.schedule
    if isinstance(steps, int) and schedule.clock_hours is None and schedule.total_steps > steps:
        return False
    hours = next((c for c in asked if c.key == "schedule.clock_hours"), None)
    if hours is not None and (hours.now or 0) > (hours.before or 0):
        return False
    # The run stays done, so a setting that asks for something else would be ignored silently.
    if asked:
        listed = ", ".join(f"{c.name}={c.now}" for c in asked[:3])
        raise ConfigError(
            f"{run}: this run is done at step {steps}, so {listed} would have no effect; set a "
            "larger schedule.total_steps to continue, or choose another run.dir"
        )
    # A typo in a path is an error here too, although nothing would be read.
    for key, path in (
        ("data.path", config.data.path),
        ("data.vocab", "" if config.data.vocab in (*MODELS, *ALIASES) else config.data.vocab),
        ("validation.path", config.validation.path),
        ("validation.prompts", config.validation.prompts),
    ):
        if path and not is_url(path) and not Path(path).exists():
            raise DataError(f"{key}={path}: no such file or folder")
    return True


def _refuse_removed(where: str, place_key: str, before: Mapping[str, Any]) -> None:
    for key, (neutral, remedy) in REMOVED_KEYS.items():
        if before.get(key, neutral) != neutral:
            raise ConfigError(
                f"{where}: this run began with {key}={before[key]}, which is no longer a key; "
                f"{remedy}; choose another {place_key}, with init.from={where}"
            )
