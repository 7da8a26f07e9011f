"""Finds recipes and DeepSpeed JSONs by name or path, in the same way for every command.

``large_phase1``, ``large_phase1.yaml`` and ``bertds/recipes/large_phase1.yaml`` denote the included
recipe in any folder; ``./mine.yaml`` and absolute paths denote only that file.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bertds.config.recipe import Config
from bertds.config.suggest import nearest
from bertds.errors import ConfigError
from bertds.system.shipped_files import PACKAGE, shipped_folder


def find_recipe(named: str | Path, named_by: str | Path = "") -> Path:
    """Return the recipe of this name or path.

    Args:
        named: the name or path that the user or another recipe gives.
        named_by: the recipe that contains this name; its folder is searched too.

    Raises:
        ConfigError: there is no such recipe; suggests similar names.
    """
    folder = PACKAGE / "recipes"
    return _find(named, named_by, folder, ("recipes", "bertds/recipes"), ".yaml", "recipe")


def find_json(named: str | Path, named_by: str | Path = "") -> Path:
    """Return the DeepSpeed JSON of this name or path; see :func:`find_recipe`."""
    folder = shipped_folder("ds_configs")
    return _find(named, named_by, folder, ("ds_configs",), ".json", "DeepSpeed JSON")


def find_recipe_or_json(named: str) -> Path:
    """Return the recipe, or else the DeepSpeed JSON, of this name or path; see :func:`find_recipe`.

    ``lamb_phase1_h100`` is a JSON. ``modern_base``, which is both, is the recipe.
    """
    suffix = Path(named).suffix
    if suffix in (".json", ".yaml"):
        return find_json(named) if suffix == ".json" else find_recipe(named)
    for find in (find_recipe, find_json):
        with suppress(ConfigError):
            return find(named)
    folders = (PACKAGE / "recipes", shipped_folder("ds_configs"))
    names = sorted({file.stem for folder in folders for file in folder.iterdir()})
    hint = nearest(named, names) or "; `bertds recipes list` lists those that are included"
    raise ConfigError(f"{named}: no such recipe or DeepSpeed JSON{hint}")


def find_deepspeed_json(config: Config, recipe: str | None, given: str | None) -> Path:
    """Return the DeepSpeed JSON to use: the one given, else the one that the recipe names."""
    if given:
        return find_json(given)
    named = config.run.deepspeed_config
    if not named:
        if not recipe:
            raise ConfigError(
                "no recipe given; use --config with one of `bertds recipes list` or your own, or "
                "--deepspeed_config F.json to train with the default settings"
            )
        raise ConfigError(
            "no DeepSpeed JSON given; use --deepspeed_config F.json, or set run.deepspeed_config "
            "in the recipe"
        )
    return find_json(named, find_recipe(recipe) if recipe else "")


def _find(
    named: str | Path,
    named_by: str | Path,
    folder: Path,
    known_as: tuple[str, ...],
    suffix: str,
    what: str,
) -> Path:
    """Try the path itself, then next to the recipe that names it, then the included files."""
    path = Path(named).expanduser()
    places = [path]
    if named_by:
        places.append(Path(named_by).resolve().parent / path)
    # A name with an explicit path must not be taken for an included file.
    explicit = str(named).startswith(("./", "../")) or path.is_absolute()
    if not explicit and str(path.parent) in (".", *known_as):
        name = path.name if path.suffix == suffix else f"{path.name}{suffix}"
        places.append(folder / name)
    for place in places:
        if place.is_file():
            return place
    # An unknown name gets a hint: an included file of that name, or a similar name.
    shipped = [file.stem for file in sorted(folder.glob(f"*{suffix}"))]
    if path.stem in shipped:
        hint = f"; a {what} of that name is at {folder / path.stem}{suffix}"
    else:
        hint = nearest(path.stem, shipped) or f"; shipped: {', '.join(shipped)}"
    raise ConfigError(f"{named}: no such {what}{hint}")
