"""Refuses options that were given but would have no effect."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping

from bertds.errors import ConfigError


def given_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> set[str]:
    """Return the names of the options whose values are not their defaults."""
    return {name for name, value in vars(args).items() if value != parser.get_default(name)}


def refuse_idle(given: Collection[str], needs: Mapping[str, Collection[str]]) -> None:
    """Refuse an option that has no effect without another one.

    Args:
        given: the attribute names of the options that were given.
        needs: option -> the options of which at least one must be given too.

    Raises:
        ConfigError: an option would be ignored; names it and the options that it needs.
    """
    for name, others in needs.items():
        if name in given and not any(other in given for other in others):
            raise ConfigError(f"{_flag(name)} requires {' or '.join(map(_flag, others))}")


def refuse_together(given: Collection[str], name: str, others: Collection[str]) -> None:
    """Refuse options that have no effect together with another one.

    Args:
        given: the attribute names of the options that were given.
        name: the attribute name of the other option.
        others: the options that it makes useless.

    Raises:
        ConfigError: such an option is given; names both.
    """
    for other in others:
        if name in given and other in given:
            raise ConfigError(f"{_flag(other)} cannot be combined with {_flag(name)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
