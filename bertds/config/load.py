"""Reads recipes: YAML and ``--set`` assignments become a checked ``Config``.

Later sources have precedence: defaults in ``bertds/config/recipe.py``, recipe file, assignments.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from bertds.config.checks import check
from bertds.config.describe import describe_type
from bertds.config.keys import all_keys, field_of, key_of
from bertds.config.locate import find_recipe
from bertds.config.other_names import IN_JSON, suggestion
from bertds.config.recipe import Config
from bertds.errors import ConfigError, reason_of
from bertds.system.json_fields import MOST
from bertds.system.yaml_text import LimitedLoader, load_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PATH_KEYS = {
    "run.dir",
    "run.deepspeed_config",
    "run.next_recipe",
    "data.path",
    "data.vocab",
    "init.from",
    "validation.path",
}
"""Keys in which ``~`` means the home folder."""
REMOVED_KEYS: dict[str, tuple[Any, str]] = {
    "model.fp8": (False, "its FP8 products were 1.7 times slower than bf16; see run.fp8"),
}
"""Keys that recipes of earlier versions may contain: the neutral value, which is still accepted,
and the remedy for any other value. The saved recipe of an old run or checkpoint is always accepted:
its weights, rows and metrics are still valid."""


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a recipe file into nested dictionaries.

    Raises:
        ConfigError: the file is missing, not YAML, not a mapping, or names a key twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from None
    try:
        value = load_yaml(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {where}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, found {_kind(value)}")
    return value


class _UniqueKeyLoader(LimitedLoader):
    """A loader that refuses a repeated key instead of keeping the last value."""


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key that is a list or a mapping", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} occurs twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


def split_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["run.seed=1", "schedule.decay=constant"]`` into ``{"run.seed": 1, ...}``.

    Values are read as YAML, so ``null``, ``true`` and ``[1, 2]`` mean what they mean in a recipe.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: expected key=value")
        if key in values:
            raise ConfigError(f"--set {key}: set twice")
        try:
            values[key] = load_yaml(text) if text else ""
        except yaml.YAMLError:
            values[key] = text
    return values


def split_by_file(assignments: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the assignments to the recipe, and those to the DeepSpeed JSON without its prefix."""
    values = split_assignments(assignments)
    for_json = {k.removeprefix(IN_JSON): v for k, v in values.items() if k.startswith(IN_JSON)}
    return {k: v for k, v in values.items() if not k.startswith(IN_JSON)}, for_json


def load_config(
    recipe: Path | str | Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Build the settings from a recipe and dotted overrides, and check them.

    Args:
        recipe: a name or YAML path (see :mod:`bertds.config.locate`), nested dictionaries as saved
            by a run, or None for the defaults.
        overrides: dotted keys and values, from :func:`split_assignments`.

    Raises:
        ConfigError: a key or value is wrong; the message has the key, the value and the remedy.
    """
    where = f"{recipe}: " if isinstance(recipe, (str, Path)) else ""
    if isinstance(recipe, (str, Path)):
        nested = read_yaml(find_recipe(recipe))
    else:
        nested = dict(recipe or {})
    # Flatten the sections to dotted keys; remember where each value was set, for messages.
    flat: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sections = {section.name for section in fields(Config)}
    for name, values in nested.items():
        if name not in sections:
            hint = suggestion(str(name), [*sections, *all_keys()])
            raise ConfigError(
                f"{where}unknown section {name!r}{hint}; "
                f"the sections are {', '.join(sorted(sections))}"
            )
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}{name} must be a mapping, found {_kind(values)}")
        for key, value in values.items():
            flat[f"{name}.{key}"] = value
            origins[f"{name}.{key}"] = where
    # Overrides have priority over the file.
    for key, value in (overrides or {}).items():
        flat[key] = value
        origins[key] = "--set "
    # A removed key may keep its neutral value, and is dropped from a recipe that a run saved.
    for key, (neutral, remedy) in REMOVED_KEYS.items():
        saved = isinstance(recipe, Mapping) and key not in (overrides or {})
        if key in flat and flat.pop(key) != neutral and not saved:
            raise ConfigError(f"{origins[key]}{key} is no longer a key; {remedy}")
    # Convert each value to its declared type, and sort them by section.
    known = all_keys()
    built: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, value in flat.items():
        if key not in known:
            hint = suggestion(key, known)
            if not hint:
                section = key.split(".", 1)[0]
                hint = (
                    f"; run bertds config explain {section} to list the keys of {section}"
                    if section in sections
                    else f"; the sections are {', '.join(sorted(sections))}"
                )
            origin = origins[key].replace("--set ", "--set: ")
            raise ConfigError(f"{origin}unknown key {key}{hint}")
        section, name = key.split(".", 1)
        value = _coerce(value, known[key], f"{origins[key]}{key}")
        if key in PATH_KEYS:
            value = os.path.expanduser(str(value))
        built[section][field_of(name)] = value
    # Build the sections, then check combinations of values.
    hints = get_type_hints(Config)
    config = Config(**{name: hints[name](**values) for name, values in built.items()})
    check(config)
    return config


def lenient(nested: object) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the parts of a recipe that can be displayed, and the keys of the others.

    It is used to display a run that another version may have written. Values of known keys have
    their declared type; other values are kept if they are plain.
    """
    known = all_keys()
    kept: dict[str, dict[str, Any]] = {}
    odd: list[str] = []
    for name, values in (nested if isinstance(nested, dict) else {"": nested}).items():
        if values is not None and (not isinstance(values, dict) or not isinstance(name, str)):
            odd.append(str(name)[:40])
            continue
        section = kept.setdefault(name, {})
        for key, value in (values or {}).items():
            dotted = f"{name}.{key}"[:80]
            try:
                if dotted in known:
                    section[key] = _coerce(value, known[dotted], dotted)
                elif isinstance(key, str) and isinstance(value, (str, int, float, type(None))):
                    section[key] = value
                else:
                    odd.append(dotted)
            except ConfigError:
                odd.append(dotted)
    return kept, odd


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return nested dictionaries with the YAML keys, which can be dumped and loaded again."""
    result: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        result[key_of(item.name)] = to_dict(value) if _is_section(value) else value
    return result


def _is_section(value: object) -> TypeGuard[DataclassInstance]:
    return is_dataclass(value) and not isinstance(value, type)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), type(value).__name__) + f" ({str(value)[:60]!r})"


def _coerce(value: object, kind: object, key: str) -> object:
    """Convert a YAML value to its declared type, or raise an error that names the key."""
    wrong = ConfigError(f"{key}={value!r} must be {describe_type(kind)}")
    if get_origin(kind) is Literal:
        # YAML 1.1 reads a bare `off` as false; a choice named "off" means the word.
        if value is False and "off" in get_args(kind):
            value = "off"
        if value in get_args(kind) and isinstance(value, str):
            return value
        raise wrong
    # An optional value, or one of several types: try them in their order.
    if get_origin(kind) in (Union, types.UnionType):
        arms = get_args(kind)
        if value is None and type(None) in arms:
            return None
        for arm in arms:
            if arm is not type(None):
                try:
                    return _coerce(value, arm, key)
                except ConfigError:
                    continue
        raise wrong
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise wrong
    if kind is str:
        if isinstance(value, str):
            _check_text(value, key)
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)  # `run.name: 7` is text that looks like a number
        raise wrong
    # Numbers: YAML 1.1 reads some spellings of them as text.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)  # YAML 1.1 reads 6e-3 and 1_000 as text
    except (ValueError, OverflowError):  # 1e400 written out
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    if kind is float:
        return number
    if number != int(number) or abs(number) > MOST:  # the range of numpy's and torch's integers
        raise wrong
    return int(value) if isinstance(value, int) else int(number)


def _check_text(text: str, key: str) -> None:
    """Refuse text that cannot be a file's name or cannot be saved."""
    if "\0" in text:
        raise ConfigError(f"{key}={text!r} contains a null character; remove it")
    # Python decodes bytes of the command line that it cannot read to lone surrogates.
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(
            f"{key}={text!r} is not UTF-8 text; use other characters, or set PYTHONUTF8=1 if the "
            "locale is not UTF-8"
        )
