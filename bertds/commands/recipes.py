"""``bertds recipes list|show|copy``: the included recipes, to read and to start from."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path

from bertds.config.load import load_config
from bertds.config.locate import find_deepspeed_json, find_recipe
from bertds.display.words import shell_word
from bertds.errors import EXIT_OK, ConfigError
from bertds.system.arguments import CommandParser
from bertds.system.atomic_files import explain_os_error, write_text
from bertds.system.shipped_files import PACKAGE


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds recipes", description="List, show and copy the included recipes."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list all recipes with their descriptions")
    show = actions.add_parser("show", help="print a recipe and its DeepSpeed JSON")
    copy = actions.add_parser("copy", help="copy a recipe and its DeepSpeed JSON, to edit them")
    for action in (show, copy):
        action.add_argument("name", help="a name listed by `bertds recipes list`, or a path")
        action.add_argument(
            "--deepspeed_config",
            metavar="F.json",
            help="the DeepSpeed JSON (default: the one named in the recipe)",
        )
    copy.add_argument(
        "--to", default=".", metavar="DIR", help="output folder (default: the current folder)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one action."""
    args = parse_args(argv)
    if args.action == "list":
        _list()
        return EXIT_OK
    recipe = find_recipe(args.name)
    json = find_deepspeed_json(load_config(args.name), args.name, args.deepspeed_config)
    if args.action == "show":
        for file in (recipe, json):
            print(f"# {file}\n{file.read_text(encoding='utf-8')}", end="")
    else:
        copies = copy_recipe(recipe, json, Path(args.to))
        for file in copies:
            print(f"wrote {file}")
        print(f"train with: bertds train --config {shell_word(copies[0])}")
    return EXIT_OK


def _list() -> None:
    for file in sorted((PACKAGE / "recipes").glob("*.yaml")):
        json = load_config(file).run.deepspeed_config
        print(f"{file.stem}  ({Path(json).name})")
        print(textwrap.fill(about(file), 80, initial_indent="    ", subsequent_indent="    "))


def about(recipe: Path) -> str:
    """Return the comment at the beginning of a recipe, as one paragraph."""
    words = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def copy_recipe(recipe: Path, json: Path, folder: Path) -> list[Path]:
    """Copy a recipe and its JSON into one folder; the copied recipe names the copied JSON.

    Args:
        recipe: the recipe.
        json: its DeepSpeed JSON.
        folder: the target folder; it is made if it is missing.

    Raises:
        ConfigError: a file of that name already exists (nothing was written).
        BertdsError: the disk is full or the folder cannot be written (neither file is left).
    """
    targets = [folder / recipe.name, folder / json.name]
    for target in targets:
        if target.exists():
            raise ConfigError(f"{target}: already exists; choose another folder with --to")
    # The key is replaced in the text, since YAML that is loaded and dumped loses its comments.
    text = recipe.read_text(encoding="utf-8")
    named = re.compile(r"^(\s+deepspeed_config:\s*)[^\s#]+", re.MULTILINE)
    if named.search(text):
        text = named.sub(rf"\g<1>./{json.name}", text)
    elif re.search(r"^run:\s*$", text, re.MULTILINE):
        text = re.sub(
            r"^run:\s*$",
            f"run:\n  deepspeed_config: ./{json.name}",
            text,
            count=1,
            flags=re.MULTILINE,
        )
    else:
        text = f"run:\n  deepspeed_config: ./{json.name}\n{text}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    contents = (text, json.read_text(encoding="utf-8"))
    for target, content in zip(targets, contents, strict=True):
        try:
            write_text(target, content)
        except BaseException:  # with one file of the two, the same command would be refused
            targets[0].unlink(missing_ok=True)
            raise
    return targets
