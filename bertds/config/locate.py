"""Finds recipes and DeepSpeed JSONs by name or path, alike for every command.

``large_phase1``, ``large_phase1.yaml`` and ``bertds/recipes/large_phase1.yaml`` mean the shipped
recipe from any folder; ``./mine.yaml`` and absolute paths mean that file alone.
"""

from __future__ import annotations

from pathlib import Path

from bertds.config.recipe import Config
from bertds.config.suggest import nearest
from bertds.errors import ConfigError
from bertds.system.shipped_files import PACKAGE, shipped_folder


def find_recipe(named: str | Path, beside: str | Path = "") -> Path:
    """Return the recipe of this name or path.

    Args:
        named: what the user or another recipe says.
        beside: the recipe that names it; its folder is searched too.

    Raises:
        ConfigError: no such recipe; says which are near.
    """
    folder = PACKAGE / "recipes"
    return _find(named, beside, folder, ("recipes", "bertds/recipes"), ".yaml", "recipe")


def find_json(named: str | Path, beside: str | Path = "") -> Path:
    """Return the DeepSpeed JSON of this name or path; see :func:`find_recipe`."""
    folder = shipped_folder("ds_configs")
    return _find(named, beside, folder, ("ds_configs",), ".json", "DeepSpeed JSON")


def find_deepspeed_json(config: Config, recipe: str | None, given: str | None) -> Path:
    """Return the DeepSpeed JSON to use: the one given, else the one that the recipe names."""
    if given:
        return find_json(given)
    named = config.run.deepspeed_config
    if not named:
        raise ConfigError(
            "no DeepSpeed JSON given; use --deepspeed_config F.json, or set run.deepspeed_config "
            "in the recipe"
        )
    return find_json(named, find_recipe(recipe) if recipe else "")


def _find(
    named: str | Path,
    beside: str | Path,
    folder: Path,
    known_as: tuple[str, ...],
    suffix: str,
    what: str,
) -> Path:
    """Look at the path itself, next to the recipe that names it, then among the shipped files."""
    path = Path(named).expanduser()
    places = [path]
    if beside:
        places.append(Path(beside).resolve().parent / path)
    explicit = str(named).startswith(("./", "../")) or path.is_absolute()
    if not explicit and str(path.parent) in (".", *known_as):
        name = path.name if path.suffix == suffix else f"{path.name}{suffix}"
        places.append(folder / name)
    for place in places:
        if place.is_file():
            return place
    shipped = [file.stem for file in sorted(folder.glob(f"*{suffix}"))]
    if path.stem in shipped:
        hint = f"; a {what} of that name is at {folder / path.stem}{suffix}"
    else:
        hint = nearest(path.stem, shipped) or f"; shipped: {', '.join(shipped)}"
    raise ConfigError(f"{named}: no such {what}{hint}")
