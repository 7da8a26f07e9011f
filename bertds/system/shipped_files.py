"""Locates the files that are distributed with the code: recipes, DeepSpeed JSONs, Slurm scripts.

In a clone ``ds_configs/`` and ``slurm/`` are next to ``bertds/``. A wheel has the first inside the
package, as ``bertds/ds_configs``. It does not have the second, whose scripts need a clone.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder ``bertds`` of this installation or clone."""

IMPORT_ROOT = PACKAGE.parent
"""The folder that contains ``bertds`` and ``data_prep``: the import path for another Python."""


def shipped_folder(name: str) -> Path:
    """Return the folder of that name inside the package, or else the one next to it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else IMPORT_ROOT / name
