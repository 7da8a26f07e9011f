"""Folders of exported and converted models: complete or absent, and replaced only on request."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertds.errors import ConfigError
from bertds.system.atomic_files import explain_os_error, os_error_of, temporary_name, write_json
from bertds.system.processes import start_time

MARK = "bertds_export.json"
"""File in every folder that is written here; only folders with this file are ever replaced."""


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty; ``overwrite`` allows an earlier export or conversion.

    Raises:
        ConfigError: ``out`` is a file, or a folder that must not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / MARK).is_file():
        raise ConfigError(
            f"{out}: exists and is not an earlier export or conversion; choose another folder"
        )
    if not overwrite:
        raise ConfigError(
            f"{out}: contains an earlier export or conversion; replace it with --overwrite, or "
            "choose another folder"
        )


@contextmanager
def fresh_folder(
    out: Path, *, overwrite: bool = False, mark: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` if the block ends without an error.

    Args:
        out: must be absent or empty, or with ``overwrite`` an earlier export or conversion.
        overwrite: see :func:`check_output`.
        mark: the record of the origin, which is written into the folder.

    Raises:
        ConfigError: ``out`` is not empty.
        BertdsError: the folder cannot be written.
    """
    check_output(out, overwrite=overwrite)
    temporary, stale = temporary_name(out), temporary_name(out.with_name(f"old-{out.name}"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        write_json(temporary / MARK, mark or {"converted": True})
        # The old folder is moved aside and removed last, so that it can be restored.
        if out.exists():
            out.rename(stale)
        temporary.rename(out)
        _remove_leftovers(temporary, stale)
    except Exception as error:
        if (cause := os_error_of(error)) is not None:
            raise explain_os_error(cause, out) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if stale.exists() and not out.exists():
            stale.rename(out)  # the new folder could not be put in place
        shutil.rmtree(stale, ignore_errors=True)


def _remove_leftovers(*names: Path) -> None:
    """Remove folders of such names that killed processes of this host left behind."""
    for name in names:
        for entry in name.parent.glob(f"{glob.escape(name.stem)}.*"):
            number = entry.suffix.removeprefix(".")
            if number.isdigit() and not start_time(int(number)):
                shutil.rmtree(entry, ignore_errors=True)
