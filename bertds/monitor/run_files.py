"""Reads a run's files from another process: they may be half-written, torn or malformed.

Commands that show a run (``status``, ``report``, a model card) must not fail because of this. What
training did not write in this form is left out and counted, and the command reports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bertds.config.load import lenient
from bertds.display.words import count
from bertds.errors import reason_of
from bertds.system.json_fields import parse_json
from bertds.system.yaml_text import load_yaml

T = TypeVar("T")

# Keys of a train line: whole numbers, numbers, and numbers that are null if the loss is not finite.
_WHOLE = ("step", "tokens", "samples", "skipped_steps")
_NUMBERS = ("lr", "seconds", "stall_seconds", "tokens_per_second")
_LOSSES = ("loss", "mlm_loss", "mlm_accuracy")


@dataclass(frozen=True, slots=True)
class MetricLines:
    """The lines of ``metrics.jsonl``, train and validation lines in the order of the file."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    """Number of torn or malformed lines."""

    @property
    def problems(self) -> list[str]:
        """One line for people if some lines were skipped."""
        lost = count(self.skipped, "line")
        return [f"metrics.jsonl: {lost} ignored (torn or malformed)"] if self.skipped else []

    @property
    def train(self) -> list[dict[str, Any]]:
        """The train lines."""
        return [line for line in self.lines if "split" not in line]

    @property
    def seconds(self) -> float:
        """Total duration of all steps."""
        return float(sum(line["seconds"] for line in self.train))

    @property
    def validation(self) -> list[dict[str, Any]]:
        """The validation lines."""
        return [line for line in self.lines if "split" in line]


def read_metrics(path: Path) -> MetricLines:
    """Read a metrics file; empty if it does not exist."""
    lines, skipped = [], 0
    for text in _lines_of(path):
        try:
            value = parse_json(text)
        except ValueError:
            value = None
        if is_metric_line(value):
            lines.append(value)
        elif text.strip():
            skipped += 1
    return MetricLines(lines, skipped)


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def is_metric_line(value: object) -> bool:
    """Return whether a value is a train or validation line as written by training."""
    if not isinstance(value, dict) or not _whole(value.get("step")):
        return False
    if not all(_known(name, one) for name, one in value.items()):
        return False
    if "split" in value:
        return all(_number(value.get(name)) for name in ("mlm_loss", "mlm_accuracy"))
    if not all(_whole(value.get(name)) for name in _WHOLE):
        return False
    if not all(_number(value.get(name)) for name in _NUMBERS):
        return False
    if not all(name in value for name in _LOSSES):
        return False
    return value["loss"] is None or all(_number(value[name]) for name in _LOSSES)


def _known(name: str, value: object) -> bool:
    # Each key with a value other than a number has its own form. Text must be printable, because
    # it is shown on terminals and pages.
    if name == "split":
        return isinstance(value, str) and value.isprintable()
    if name == "prompts":
        return isinstance(value, list) and all(
            isinstance(prompt, dict)
            and all(
                isinstance(prompt.get(key), str) and prompt[key].isprintable()
                for key in ("text", "answer", "predicted")
            )
            for prompt in value
        )
    if name == "trust_ratio":
        return isinstance(value, dict) and all(
            isinstance(ends, list)
            and len(ends) == 3
            and all(end is None or _number(end) for end in ends)
            for ends in value.values()
        )
    if name == "rank_seconds":
        return isinstance(value, dict) and all(
            isinstance(ends, list) and len(ends) == 3 and all(map(_number, ends))
            for ends in value.values()
        )
    if name == "slow_ranks":
        return isinstance(value, list) and all(
            isinstance(rank, dict)
            and _whole(rank.get("rank"))
            and isinstance(rank.get("host"), str)
            and rank["host"].isprintable()
            and (rank.get("gpu") is None or _whole(rank["gpu"]))
            and _number(rank.get("slower"))
            for rank in value
        )
    return value is None or _number(value)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON file with one object; empty if it is missing or torn.

    Args:
        path: the file.
        problems: gets a line if the file exists but cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({reason_of(error)[:120]})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object")
        return {}
    return value


def read_recipe(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read the settings in a run's ``config.yaml``, by section.

    A recipe of another version may have keys that this one does not know; they are kept if they are
    plain values. A value of the wrong type is left out and added to ``problems``.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({reason_of(error)[:120]})")
        return {}
    kept, odd = lenient(value)
    if odd:
        problems.append(
            f"{path.name}: ignored entries that are not settings: {', '.join(odd[:4])}"[:200]
        )
    return kept


def starts_of(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the valid starts in ``environment.json``."""
    starts = at(environment, "starts", list, [])
    return [start for start in starts if isinstance(start, dict)]


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a rank, after which the run was restarted."""

    what: str
    seconds: float
    """Seconds from the checkpoint that the run resumed from to the restart: the cost."""


def losses_of(environment: Mapping[str, Any]) -> list[Loss]:
    """Return the losses in ``environment.json``, which are recorded with the next start."""
    found = []
    for start in starts_of(environment):
        what, seconds = at(start, "lost.what", str, ""), at(start, "lost.seconds", (int, float), -1)
        if what and _number(seconds) and seconds >= 0:
            found.append(Loss(what, float(seconds)))
    return found


def at(values: Mapping[str, Any], key: str, kind: type[T] | tuple[type, ...], default: T) -> T:
    """Return the value of a dotted key in nested values, or the default if it is not a ``kind``."""
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, bool) and kind is not bool:
        return default
    fits: bool = isinstance(found, kind)
    result: T = found if fits else default
    return result
