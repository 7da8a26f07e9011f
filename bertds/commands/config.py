"""``bertds config show|explain|diff|validate|schema``: shows, explains and checks settings."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from bertds.config.describe import default_of, describe_type, field_docs, is_numeric
from bertds.config.keys import all_keys, dotted
from bertds.config.load import load_config, split_by_file, to_dict
from bertds.config.locate import find_deepspeed_json, find_recipe_or_json
from bertds.config.other_names import IN_JSON, OTHER_NAMES, suggestion
from bertds.config.ranges import range_of
from bertds.config.recipe import Config
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json
from bertds.engine.ds_config_texts import json_keys
from bertds.errors import EXIT_BAD_INPUT, EXIT_OK, ConfigError
from bertds.system.arguments import CommandParser, add_overrides


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds config", description="Show, explain, compare and check settings."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser(
        "show", help="print a recipe and its DeepSpeed JSON, including all defaults"
    )
    show.add_argument("recipe", help="a recipe or DeepSpeed JSON, as a name or path")
    show.add_argument(
        "--deepspeed_config",
        metavar="F.json",
        help="the DeepSpeed JSON (default: the one named in the recipe)",
    )
    add_overrides(show)
    explain = actions.add_parser("explain", help="explain a key or a section")
    explain.add_argument(
        "key",
        nargs="?",
        default="",
        help="a key or section, such as schedule, lr or deepspeed.KEY (default: all)",
    )
    diff = actions.add_parser(
        "diff", help="print the keys that differ between two recipes or DeepSpeed JSON files"
    )
    diff.add_argument("first", help="a recipe or DeepSpeed JSON, as a name or path")
    diff.add_argument("second", help="another one")
    validate = actions.add_parser("validate", help="check recipes and DeepSpeed JSON files")
    validate.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="recipes or DeepSpeed JSON files, as names or paths",
    )
    actions.add_parser("schema", help="print the JSON Schema of recipes, for editors")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one action."""
    args = parse_args(argv)
    if args.action == "show":
        _show(args.recipe, args.deepspeed_config, args.set)
    elif args.action == "explain":
        _explain(args.key)
    elif args.action == "schema":
        from bertds.config.json_schema import json_schema

        print(json.dumps(json_schema(field_docs()), indent=2))
    elif args.action == "diff":
        first, second = (_both(r) for r in (args.first, args.second))
        for key in dict.fromkeys((*first, *second)):
            if first.get(key) != second.get(key):
                print(f"{key}: {_shown(first, key)} -> {_shown(second, key)}")
    else:
        return _validate(args.files)
    return EXIT_OK


def _show(named: str, deepspeed_json: str | None, assignments: list[str]) -> None:
    """Print the recipe as YAML that can be used as a recipe, with the JSON's keys as comments."""
    for_recipe, for_json = split_by_file(assignments)
    path = find_recipe_or_json(named)
    if path.suffix == ".json":
        if for_recipe or deepspeed_json:
            raise ConfigError(
                f"{named}: with a DeepSpeed JSON alone, only --set deepspeed.KEY=VALUE is allowed"
            )
        print(json.dumps(load_deepspeed_json(path, for_json).values, indent=2))
        return
    config = load_config(named, for_recipe)
    changed = 0
    for section, inner in to_dict(config).items():
        print(f"{section}:")
        for key, value in inner.items():
            default = default_of(f"{section}.{key}")
            line = yaml.safe_dump({key: value}, allow_unicode=True, width=1000).strip()
            mark = "" if value == default else f"  # default: {_as_yaml(default)}"
            changed += bool(mark)
            print(f"  {line}{mark}")
    print(f"# {changed} keys differ from their defaults, which are shown as comments.")
    if not (config.run.deepspeed_config or deepspeed_json):
        if for_json:
            find_deepspeed_json(config, named, deepspeed_json)  # raises the error for the user
        print("# The recipe does not name a DeepSpeed JSON (run.deepspeed_config).")
        return
    settings = _json_of(config, named, deepspeed_json, for_json)
    given = dotted(settings.values, IN_JSON)
    print(f"#\n# The DeepSpeed JSON {settings.path}:")
    for key, value in given.items():
        print(f"# {key}: {json.dumps(value)}")
    # The optimizer's defaults are those of the variant, so they are not obvious from the JSON.
    optimizer = settings.optimizer
    for name in ("betas", "eps", "weight_decay", "bias_correction"):
        if (key := f"{IN_JSON}optimizer.params.{name}") not in given:
            print(f"# {key}: {json.dumps(getattr(optimizer, name))}  (default)")
    if "deepspeed.gradient_clipping" not in given:
        print(f"# {IN_JSON}gradient_clipping: {settings.gradient_clipping}  (default)")


def _shown(values: dict[str, Any], key: str) -> str:
    """Return a value as it is written in its file."""
    value = values.get(key, "(not set)")
    return value if isinstance(value, str) and value else json.dumps(value)


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, width=1000).removesuffix("...\n").strip()


def _json_of(
    config: Config, recipe: str, given: str | None, overrides: dict[str, Any] | None = None
) -> DeepSpeedSettings:
    return load_deepspeed_json(find_deepspeed_json(config, recipe, given), overrides)


def _both(named: str) -> dict[str, Any]:
    """Return the dotted keys of a recipe and of the JSON that it names, or those of a JSON."""
    path = find_recipe_or_json(named)
    if path.suffix == ".json":
        return dotted(load_deepspeed_json(path).values, IN_JSON)
    config = load_config(named)
    values = dotted(to_dict(config))
    if config.run.deepspeed_config:
        values |= dotted(_json_of(config, named, None).values, IN_JSON)
    return values


def _validate(files: list[str]) -> int:
    """Check each file, a recipe together with its JSON; report all errors, not only the first."""
    bad = 0
    for named in files:
        try:
            _both(named)
        except ConfigError as error:
            bad += 1
            print(f"bertds: error: {error}", file=sys.stderr)
        else:
            print(f"{named}: valid")
    return EXIT_BAD_INPUT if bad else EXIT_OK


def _explain(key: str) -> None:
    recipe_keys = all_keys()
    in_json = {IN_JSON + name: text for name, text in json_keys().items()}
    known = [*recipe_keys, *in_json]
    # Names of other projects count only if the name is not one of ours.
    chosen = _named(key, known) or _named(OTHER_NAMES.get(key, key), known)
    if not chosen and (file := Path(key)).suffix in (".json", ".yaml"):
        raise ConfigError(
            f"{key}: is a file, not a key; to show it, use bertds config show {file.name}"
        )
    if not chosen:
        sections = {name.rpartition(".")[0] for name in known}
        raise ConfigError(f"unknown key {key}{suggestion(key, [*sections, *known])}")
    # The heading is printed once, before the first key of the JSON.
    owner = ""
    for name in chosen:
        if name in in_json:
            if owner != IN_JSON and key:
                print(
                    "Keys of the DeepSpeed JSON (on the command line: --set deepspeed.KEY=VALUE):"
                )
                owner = IN_JSON
            print(name)
            text = in_json[name]
        else:
            default = _as_yaml(default_of(name))
            kind = recipe_keys[name]
            allowed = f", {range_of(name).words()}" if is_numeric(kind) else ""
            print(f"{name}  ({describe_type(kind)}{allowed}; default {default})")
            text = field_docs()[name]
        print(
            textwrap.fill(
                text, 80, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
            )
        )


def _named(key: str, known: list[str]) -> list[str]:
    """Return the keys that a word denotes: itself, its section, or the last part of the name."""
    if not key:
        return known
    full = (key, IN_JSON + key)
    inside = tuple(f"{name}." for name in full)
    return [n for n in known if n in full or n.startswith(inside) or n.endswith(f".{key}")]
