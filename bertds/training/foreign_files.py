"""Refuses a run folder that contains other files, before anything is written to it.

A run replaces ``config.yaml``, ``tokenizer/`` and others by name, so it must not start in a folder
of the user's own files. A folder is accepted if it is a run, or if it contains only what may be
there before a run has recorded its first start.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from bertds.checkpoint.find import step_folders
from bertds.config.load import read_yaml
from bertds.config.recipe import Config
from bertds.display import words
from bertds.errors import ConfigError
from bertds.system.atomic_files import explain_os_error

RECORD = "environment.json"
"""The first file that a run records: a folder with it is a run."""
_BEFORE_THE_RECORD = ("checkpoints", "log.txt", "slurm", "STOP")
_SETTINGS = ("config.yaml", "deepspeed.json")
_LOGS = (".log", ".out", ".err")
"""Of the batch system, the launcher or the shell, which may create the folder before the run."""


def refuse_foreign_files(run: Path) -> None:
    """Check that a folder is a run, or that a new run may be started in it.

    Args:
        run: the run folder; it may be missing.

    Raises:
        ConfigError: the folder is not a run and contains other files; names one of them.
    """
    try:
        if not run.is_dir() or (run / RECORD).is_file() or step_folders(run / "checkpoints"):
            return
        # Versions that recorded the settings first may have been killed between the two.
        settings = _SETTINGS if _is_resolved(run / "config.yaml") else ()
        own = {*_BEFORE_THE_RECORD, *settings}
        foreign = sorted(
            path.name for path in run.iterdir() if path.name not in own and not _is_log(path)
        )
    except OSError as error:
        raise explain_os_error(error, run) from error
    if foreign:
        raise ConfigError(
            f"run.dir={run}: this folder is not a run and contains other files "
            f"({foreign[0]}{words.and_more(foreign)}); set run.dir to a new or an empty folder"
        )


def _is_resolved(recipe: Path) -> bool:
    """Return whether a recipe has every section, as the one that a run writes does."""
    if not recipe.is_file():
        return False
    try:
        return {section.name for section in fields(Config)} <= set(read_yaml(recipe))
    except ConfigError:
        return False


def _is_log(path: Path) -> bool:
    """Return whether this is a log, a folder of logs, a hidden file or part of an empty disk."""
    if path.name.startswith(".") or path.name == "lost+found":
        return True
    if path.is_dir() and not path.is_symlink():
        return all(_is_log(inside) for inside in path.iterdir())
    return path.suffix in _LOGS
