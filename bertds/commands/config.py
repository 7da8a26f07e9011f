"""``bertds config show|explain|diff|validate|schema``: settings that explain themselves."""

from __future__ import annotations

import argparse
import json

import yaml

from bertds.config.describe import default_of, describe_type, field_docs
from bertds.config.keys import all_keys
from bertds.config.load import flatten, load_config, split_assignments, to_dict
from bertds.config.suggest import nearest
from bertds.errors import EXIT_OK, ConfigError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds config", description="Show, explain, compare and check settings."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="print a recipe with every default filled in")
    show.add_argument("recipe")
    show.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    explain = actions.add_parser("explain", help="say what a key (or a section) means")
    explain.add_argument("key", nargs="?", default="")
    diff = actions.add_parser("diff", help="print the keys in which two recipes differ")
    diff.add_argument("first")
    diff.add_argument("second")
    validate = actions.add_parser("validate", help="check recipes")
    validate.add_argument("recipes", nargs="+")
    actions.add_parser("schema", help="print the recipes' JSON Schema, for editors")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one action."""
    args = parse_args(argv)
    if args.action == "show":
        values = to_dict(load_config(args.recipe, split_assignments(args.set)))
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
    elif args.action == "explain":
        _explain(args.key)
    elif args.action == "schema":
        from bertds.config.json_schema import json_schema

        print(json.dumps(json_schema(field_docs()), indent=2))
    elif args.action == "diff":
        first, second = (flatten(to_dict(load_config(r))) for r in (args.first, args.second))
        for key in first:
            if first[key] != second[key]:
                print(f"{key}: {first[key]} -> {second[key]}")
    else:
        for recipe in args.recipes:
            load_config(recipe)
            print(f"{recipe}: good")
    return EXIT_OK


def _explain(key: str) -> None:
    keys = all_keys()
    chosen = [name for name in keys if name == key or name.startswith(f"{key}.") or not key]
    if not chosen:
        raise ConfigError(f"unknown key {key}{nearest(key, keys)}")
    for name in chosen:
        print(f"{name}  ({describe_type(keys[name])}; default {default_of(name)!r})")
        print(f"    {field_docs()[name]}")
