"""Finds the checkpoints of a run."""

from __future__ import annotations

import re
from pathlib import Path

from bertds.checkpoint.format import CheckpointReader
from bertds.checkpoint.manifest import FILE
from bertds.errors import CheckpointError
from bertds.system.logs import log

_STEP = re.compile(r"^step_(\d{8,})$")


def step_name(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """Return the step of a checkpoint's folder, given its name."""
    return int(name.removeprefix("step_"))


def step_folders(checkpoints: Path) -> list[Path]:
    """Return the folders of a run's published checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _STEP.match(path.name)]
    return sorted(found, key=lambda path: (step_of(path.name), path), reverse=True)


def newest_good(checkpoints: Path) -> CheckpointReader | None:
    """Return the newest intact checkpoint, or None if there is no checkpoint.

    Warns about damaged ones and about a ``latest`` that names no folder.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    folders = step_folders(checkpoints)
    # A wrong `latest` is only a warning: the folders themselves decide.
    latest = checkpoints / "latest"
    if latest.is_file():
        name = latest.read_text(encoding="utf-8", errors="replace").strip()
        if not _STEP.match(name) or not (checkpoints / name).is_dir():
            log.warning(
                "%s names %r, which does not exist; looking for the newest checkpoint", latest, name
            )
    problems: list[str] = []
    # From the newest to the oldest: return the first one that is intact.
    for folder in folders:
        try:
            reader = CheckpointReader(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("%s; falling back to %s", problem, folder)
        return reader
    if problems:
        raise CheckpointError(
            f"{checkpoints}: no checkpoint is intact: {'; '.join(problems)}. Remove the folder to "
            "start from the beginning"
        )
    return None


def locate(path: Path | str) -> CheckpointReader:
    """Open the checkpoint that a user named: a checkpoint folder, or a run (its newest intact one).

    Raises:
        CheckpointError: the path is neither, or the run has no intact checkpoint.
    """
    path = Path(path)
    if (path / FILE).is_file() and _STEP.match(path.resolve().name):
        return CheckpointReader(path)
    reader = newest_good(path / "checkpoints")
    if reader is not None:
        return reader
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        raise CheckpointError(f"{path}: the run has no checkpoint yet")
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    # The output of bertds finetune and of bertds pipeline.
    inner = path / "model"
    meant = f" (did you mean {inner}?)" if (inner / "config.json").is_file() else ""
    raise CheckpointError(f"{path}: neither a run folder nor a checkpoint{meant}")
