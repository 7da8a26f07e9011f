"""Reads a DeepSpeed JSON and refuses what DeepSpeed would ignore or this project cannot support.

The file is an ordinary DeepSpeed JSON with two extensions: ``optimizer.type`` "Lamb" is the exact
LAMB of this project, with its ``variant``, and keys that start with ``_`` or are named ``comment``
are comments.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertds.config.batch_plan import BatchPlan
from bertds.config.other_names import IN_JSON, OTHER_NAMES
from bertds.config.suggest import nearest_or_all
from bertds.display.words import count
from bertds.engine import ds_config_keys as schema
from bertds.errors import ConfigError, reason_of
from bertds.optim.settings import OptimizerSettings, parse_optimizer
from bertds.system.json_fields import MOST, is_finite

Precision = Literal["fp32", "bf16", "fp16", "autocast"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepSpeedSettings:
    """A DeepSpeed JSON, checked."""

    path: str
    """The path of the file, for messages."""
    values: dict[str, Any]
    """The JSON with overrides applied, comments removed and numbers as numbers."""
    optimizer: OptimizerSettings
    """The optimizer section."""
    train_batch_size: int
    """The global batch: samples per optimizer step."""
    train_micro_batch_size_per_gpu: int
    """Samples per process and forward pass; 0 = "auto", determined when training starts."""
    gradient_accumulation_steps: int | None
    """As in the JSON, or None; batch_plan derives it and compares it with this value."""
    stage: int
    """ZeRO stage, 0 to 3, after low precision was moved from stage 0 to 1."""
    precision: Precision
    """Of the weights that the model computes with. autocast keeps them in float32 and computes in
    bfloat16. Master weights and moments are always float32."""
    gradient_clipping: float
    """Largest global gradient norm; 0 = no clipping. 1.0 if the JSON sets none, as in DeepSpeed."""
    notices: tuple[str, ...] = field(default=())
    """Changes to the settings, to be reported to the user once."""

    @property
    def finds_micro_batch(self) -> bool:
        """Whether the micro batch must still be found; see bertds/training/auto_micro_batch.py."""
        return self.train_micro_batch_size_per_gpu == 0

    @property
    def offloads_optimizer(self) -> bool:
        """Whether master weights and moments are in the CPU's memory."""
        return _offloads(self.values.get("zero_optimization", {}), "offload_optimizer")

    def batch_plan(self, world_size: int) -> BatchPlan:
        """Divide the global batch among a number of processes.

        If a process has fewer rows than ``train_micro_batch_size_per_gpu``, it takes all of them in
        one forward pass, so that one JSON serves one GPU and hundreds.

        Raises:
            ConfigError: it cannot be divided (the message names the nearest sizes that can), or the
                JSON gives a different gradient_accumulation_steps.
        """
        if self.finds_micro_batch:
            raise ConfigError(
                f'{self.path}: train_micro_batch_size_per_gpu="auto" is determined when '
                "training starts; set a number here"
            )
        # An explicit accumulation fixes the micro batch, so it is only reduced without one.
        given, micro_batch = self.gradient_accumulation_steps, self.train_micro_batch_size_per_gpu
        rows, rest = divmod(self.train_batch_size, world_size)
        if given is None and rest == 0 < rows:
            micro_batch = min(micro_batch, rows)
        plan = BatchPlan(
            global_batch_size=self.train_batch_size,
            micro_batch_size=micro_batch,
            world_size=world_size,
        )
        if given is not None and given != plan.gradient_accumulation_steps:
            raise ConfigError(
                f"{self.path}: gradient_accumulation_steps={given}, but "
                f"train_batch_size={self.train_batch_size} with "
                f"train_micro_batch_size_per_gpu={self.train_micro_batch_size_per_gpu} on "
                f"{count(world_size, 'process', 'processes')} requires "
                f"{plan.gradient_accumulation_steps}; omit gradient_accumulation_steps"
            )
        return plan


def load_deepspeed_json(
    path: Path | str, overrides: Mapping[str, Any] | None = None
) -> DeepSpeedSettings:
    """Read and check a DeepSpeed JSON.

    Args:
        path: the file.
        overrides: dotted keys and values that have precedence over the file's, such as
            ``{"zero_optimization.stage": 2}``. Numbers may be given as text.

    Raises:
        ConfigError: the file cannot be read, or contains an unknown key, a wrong type, a key that
            another file owns, or a combination that is not supported.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from None
    try:
        values = json.loads(text, object_pairs_hook=_no_repeated_keys)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not JSON: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    return check_deepspeed_values(values, overrides, path=str(path))


def check_deepspeed_values(
    values: object, overrides: Mapping[str, Any] | None = None, *, path: str = "DeepSpeed JSON"
) -> DeepSpeedSettings:
    """Check the contents of a DeepSpeed JSON; see :func:`load_deepspeed_json`."""
    try:
        if not isinstance(values, dict):
            raise ConfigError(f"must be a JSON object, found {type(values).__name__}")
        # Overrides are applied before the check, so that they are checked like the file's values.
        values = _without_comments(copy.deepcopy(values))
        for key, value in (overrides or {}).items():
            _override(values, key, value)
        values = _check_section(values, schema.TOP, "")
        return _resolve(values, path)
    except ConfigError as error:
        message = str(error)
        # A value from the command line is not in the file, so name the option instead.
        if any(re.match(rf"{re.escape(key)}\b", message) for key in overrides or ()):
            raise ConfigError(f"--set deepspeed.{message}") from None
        raise ConfigError(message if message.startswith(path) else f"{path}: {message}") from None


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; json alone would keep the last of several equal keys silently."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"the key {key!r} is given twice")
        result[key] = value
    return result


def _without_comments(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_comments(inner) if isinstance(inner, dict) else inner
        for key, inner in values.items()
        if not key.startswith("_") and key != "comment"
    }


def _override(values: dict[str, Any], dotted: str, value: object) -> None:
    *sections, last = dotted.split(".")
    here = values
    for section in sections:
        inner = here.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}={value!r}: {section} is not a section")
        here = inner
    here[last] = _parsed(value) if isinstance(value, str) else value


def _parsed(text: str) -> object:
    """Read text as JSON or, like ``.5``, as a Python number; other text stays text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        with contextlib.suppress(ValueError):
            return float(text)
        return text


def _check_section(values: object, table: dict[str, Any], prefix: str) -> dict[str, Any]:
    # Returns a copy without harmless keys; every other key must be in the table.
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix[:-1]}={values!r} must be an object")
    checked = {}
    for key, value in values.items():
        full = prefix + key
        rule = table.get(key)
        if rule is None:
            raise ConfigError(f"{full} is not a DeepSpeed key{_hint(key, table)}")
        if isinstance(rule, schema.Refused):
            # A refused key is accepted with the value that switches its feature off, and left out.
            if not isinstance(value, dict | list) and value in rule.harmless:
                continue
            raise ConfigError(f"{full}={_short(value)} is not supported: {rule.why}")
        checked[key] = (
            _check_section(value, rule, full + ".")
            if isinstance(rule, dict)
            else _check_value(value, rule, full)
        )
    return checked


def _hint(key: str, table: Mapping[str, Any]) -> str:
    """Suggest a key: the one that another project's name denotes, or the nearest."""
    ours = OTHER_NAMES.get(key)
    if ours is None:
        return nearest_or_all(key, table)
    owner = "" if ours.startswith(IN_JSON) else ", a key of the recipe"
    return f" (did you mean {ours.removeprefix(IN_JSON)}{owner}?)"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_value(value: object, rule: object, full: str) -> object:
    if value == "auto":
        # Only the micro batch may be "auto"; elsewhere Hugging Face's integration would fill it in.
        if isinstance(rule, schema.Number) and rule.or_auto:
            return value
        raise ConfigError(
            f'{full}="auto": set a value; "auto" is only supported by other frameworks'
        )
    # What a rule accepts: one of some words, a whole number, any number, or a JSON type.
    if isinstance(rule, schema.Choice):
        if isinstance(value, bool) or value not in rule.words:
            words = ", ".join(str(word) for word in rule.words)
            raise ConfigError(f"{full}={_short(value)} must be one of {words}")
        return value
    if isinstance(rule, schema.Number):
        number = _finite(value)
        whole = number is not None and number == int(number) and abs(number) <= MOST
        if number is None or (rule.whole and not whole):
            kind = "a whole number" if rule.whole else "a number"
            raise ConfigError(f"{full}={_short(value)} must be {kind}")
        if problem := rule.allowed.problem(number):
            raise ConfigError(f"{full}={_short(value)} {problem}")
        return int(number) if rule.whole else number
    kinds: dict[object, type] = {schema.FLAG: bool, schema.TEXT: str, schema.LIST: list}
    wanted = kinds.get(rule)
    if wanted is not None and not isinstance(value, wanted):
        name = {bool: "true or false", str: "text", list: "a list"}[wanted]
        raise ConfigError(f"{full}={_short(value)} must be {name}")
    return value


def _finite(value: object) -> int | float | None:
    """Return the number unchanged, or None if it is not a number or not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if is_finite(value) else None


def _resolve(values: dict[str, Any], path: str) -> DeepSpeedSettings:
    """Check combinations of keys, and fill in what DeepSpeed would choose differently."""
    if "optimizer" not in values:
        raise ConfigError("the section optimizer is missing")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        if key not in values:
            raise ConfigError(
                f"{key} is missing; set train_batch_size (the global batch size) and "
                "train_micro_batch_size_per_gpu; accumulation is derived"
            )
    # Optimizer, precision and stage decide which other keys are possible.
    optimizer = parse_optimizer(values["optimizer"])
    precision = _precision(values)
    stage = values.setdefault("zero_optimization", {}).get("stage", 0)
    zero = values["zero_optimization"]
    notices = []
    # Stage 1 computes the same update as stage 0.
    if stage == 0 and precision in ("bf16", "fp16"):
        stage = zero["stage"] = 1
        notices.append(
            f"{path}: {precision} at ZeRO stage 0 makes an update before the first step "
            "(DeepSpeed 0.19.8); using stage 1 instead"
        )
    # Offloading needs a stage that partitions what is offloaded.
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        if _offloads(zero, key) and stage < least:
            raise ConfigError(
                f"zero_optimization.{key} needs ZeRO stage {least} or higher, found {stage}"
            )
    # The dtype in which the gradients of micro batches are summed.
    accumulation = values.get("data_types", {}).get("grad_accum_dtype")
    if precision in ("fp32", "autocast") and accumulation not in (None, "fp32"):
        raise ConfigError(
            f"data_types.grad_accum_dtype={accumulation!r} cannot be used with float32 weights; "
            "omit it"
        )
    if precision == "fp16" and accumulation == "bf16":
        raise ConfigError("data_types.grad_accum_dtype='bf16' cannot be combined with fp16")
    if accumulation is None and precision in ("bf16", "fp16"):
        # DeepSpeed would accumulate in bf16 or fp16. After hundreds of micro batches (bf16) or
        # thousands (fp16) the next one would be lost in rounding, and the result would depend on
        # the micro batch size.
        values.setdefault("data_types", {})["grad_accum_dtype"] = "fp32"
    if zero.get("reduce_scatter", True) and stage == 2 and values.get("prescale_gradients"):
        raise ConfigError("prescale_gradients=true cannot be combined with ZeRO stage 2")
    micro_batch = values["train_micro_batch_size_per_gpu"]
    return DeepSpeedSettings(
        path=path,
        values=values,
        optimizer=optimizer,
        train_batch_size=values["train_batch_size"],
        train_micro_batch_size_per_gpu=0 if micro_batch == "auto" else micro_batch,
        gradient_accumulation_steps=values.get("gradient_accumulation_steps"),
        stage=stage,
        precision=precision,
        gradient_clipping=float(values.get("gradient_clipping", 1.0)),
        notices=tuple(notices),
    )


def _offloads(zero: dict[str, Any], key: str) -> bool:
    # The only other device that is accepted is "cpu".
    return bool(zero.get(key, {}).get("device", "none") != "none")


def _precision(values: dict[str, Any]) -> Precision:
    # DeepSpeed accepts both spellings.
    if "bf16" in values and "bfloat16" in values:
        raise ConfigError("bf16 and bfloat16 are two spellings of one section; keep bf16")
    enabled = [
        name
        for name, section in (
            ("bf16", values.get("bf16", values.get("bfloat16", {}))),
            ("fp16", values.get("fp16", {})),
            ("autocast", values.get("torch_autocast", {})),
        )
        if section.get("enabled", False)
    ]
    if len(enabled) > 1:
        raise ConfigError(f"{' and '.join(enabled)} are both enabled; use only one")
    if not enabled:
        return "fp32"
    if enabled[0] == "autocast":
        dtype = values["torch_autocast"].get("dtype")
        if dtype not in ("bfloat16", "bf16"):
            raise ConfigError(
                f"torch_autocast.dtype={dtype!r} must be bfloat16; for float16, which requires "
                "loss scaling, use the fp16 section"
            )
    return enabled[0]  # type: ignore[return-value]
