"""Reads the state of a run from its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertds.config.load import load_config
from bertds.data.vocabulary import vocabulary_size
from bertds.errors import DataError, UserError
from bertds.monitor.health import Finding, findings
from bertds.monitor.metrics_file import FILE
from bertds.monitor.remaining_time import later_phases, seconds_of, steps_by_clock
from bertds.monitor.run_files import (
    Loss,
    MetricLines,
    at,
    losses_of,
    read_metrics,
    read_object,
    read_recipe,
    starts_of,
)
from bertds.system.folder_lock import STALE_SECONDS, living_holder

SILENT_FACTOR = 10.0
"""A live run without a new line for this multiple of its usual pause is called silent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of one run folder."""

    run: Path
    state: str
    """done, training, silent, stopped, killed or not started."""
    step: int
    total_steps: int
    seconds_per_step: float
    last: dict[str, Any]
    """The last train line, or empty."""
    validation: dict[str, Any]
    """The last validation line, or empty."""
    age_seconds: float
    """Since the last metric line."""
    checkpoints: list[str]
    starts: int
    losses: list[Loss]
    """Lost ranks, and the time to train again what was done since the last checkpoint."""
    owner: str
    found: list[Finding]
    later_seconds: float = 0.0
    """The duration of the phases after this one, if the recipe names them."""
    problems: list[str] = field(default_factory=list)
    """Files of the folder that could not be read, one line each."""

    @property
    def seconds_left(self) -> float:
        """Seconds until the last step, at the recent speed."""
        return max(0, self.total_steps - self.step) * self.seconds_per_step


def seconds_of_all(states: list[Status]) -> float:
    """Return the seconds left of several phases and of those that follow the last of them."""
    unfinished = [state for state in states if state.state != "done"]
    if not unfinished:
        return 0.0
    return sum(state.seconds_left for state in unfinished) + states[-1].later_seconds


def expand(folder: Path) -> list[Path]:
    """Return the run folders that a folder refers to: itself, or its phases.

    Raises:
        DataError: it is not a run folder and contains none.
    """
    if is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.glob("*/") if is_run(path))
    if not inside:
        raise DataError(f"{folder}: not a run folder (config.yaml is missing)")
    return inside


def is_run(folder: Path) -> bool:
    """Return whether a run has begun in a folder; one killed early has only a lock and a log."""
    early = (folder / ".lock").is_file() and (folder / "log.txt").is_file()
    return early or (folder / "config.yaml").is_file()


def read_status(run: Path) -> Status:
    """Read one run folder; unreadable files become ``problems``."""
    problems: list[str] = []
    recipe = run / "config.yaml"
    config = read_recipe(recipe, problems) if recipe.is_file() else {}
    file = run / FILE
    metrics = read_metrics(file)
    lines, train = metrics.lines, metrics.train
    age = time.time() - file.stat().st_mtime if file.is_file() else 0.0
    step = lines[-1]["step"] if lines else 0
    total = expected_steps(config, metrics, done=(run / "DONE").is_file())
    # Seconds per step over the last lines.
    recent = train[-10:]
    per_step = 0.0
    if recent:
        steps = recent[-1]["step"] - recent[0]["step"]
        seconds = sum(line["seconds"] for line in recent[1:])
        per_step = (
            seconds / steps if steps > 0 else recent[0]["seconds"] / max(1, recent[0]["step"])
        )
    # The process that holds the run, and whether it is alive.
    environment = read_object(run / "environment.json", problems)
    starts = starts_of(environment)
    owner, alive = _owner(run / ".lock")
    # The state: a live process is training, or silent if it writes far less often than usual.
    pause = max((line["seconds"] for line in recent), default=0.0)
    if (run / "DONE").is_file():
        state = "done"
    elif alive:
        silent = bool(train) and age > max(60.0, SILENT_FACTOR * pause)
        state = "silent" if silent else "training"
    elif owner:  # a process that ends normally releases its lock
        state = "killed"
    else:
        state = "stopped" if lines or starts else "not started"
    # Files that cannot be read are reported, not fatal.
    read_object(run / "DONE", problems)
    problems += metrics.problems
    return Status(
        run=run,
        state=state,
        step=step,
        total_steps=total,
        seconds_per_step=per_step,
        last=train[-1] if train else {},
        validation=metrics.validation[-1] if metrics.validation else {},
        age_seconds=age,
        checkpoints=sorted(p.parent.name for p in run.glob("checkpoints/step_*/manifest.json")),
        starts=len(starts),
        losses=losses_of(environment),
        owner=owner,
        found=findings(lines),
        later_seconds=_later(config, train, run, starts),
        problems=problems,
    )


def expected_steps(config: dict[str, Any], metrics: MetricLines, *, done: bool) -> int:
    """Return the number of steps of a run: the recipe's, or about those that its clock allows.

    Args:
        config: the run's recipe, as read.
        metrics: the contents of its ``metrics.jsonl``.
        done: whether the run is finished.
    """
    total = at(config, "schedule.total_steps", int, 0)
    clock = at(config, "schedule.clock_hours", (int, float), 0) or None
    step = metrics.train[-1]["step"] if metrics.train else 0
    if done and clock:
        return step
    return steps_by_clock(total, clock, step, metrics.seconds)


def _later(
    values: dict[str, Any],
    train: list[dict[str, Any]],
    run: Path,
    starts: list[dict[str, Any]],
) -> float:
    """Return the seconds of the phases that the recipe names, at the recent speed."""
    recent = [line["tflops"] for line in train[-10:] if line.get("tflops") is not None]
    if not recent or not at(values, "run.next_recipe", str, ""):
        return 0.0
    try:
        config = load_config(values)
        size = vocabulary_size(run / "tokenizer")
        phases = later_phases(config, size) if size else []
    except (UserError, OSError, ValueError):
        return 0.0  # the recipe was moved, or the run was only just created
    devices = at(starts[-1], "world_size", int, 1) if starts else 1
    return seconds_of(phases, sum(recent) / len(recent) * 1e12 * devices)


def _owner(lock: Path) -> tuple[str, bool]:
    """Return the holder of a run's lock, and whether it lives, as far as this machine can know."""
    owner = read_object(lock, [])
    if not owner:
        return "", False
    name = f"process {owner.get('pid')} on {owner.get('host')}"
    if owner.get("job"):
        name += f", Slurm job {owner['job']}"
    return name, living_holder(lock, STALE_SECONDS) is not None
