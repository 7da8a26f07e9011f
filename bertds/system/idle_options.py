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
        given: the names of the options that were given, as attributes.
        needs: by name, the options of which one must be given too.

    Raises:
        ConfigError: an option would be ignored; the message names it and what it goes with.
    """
    for name, others in needs.items():
        if name in given and not any(other in given for other in others):
            raise ConfigError(f"{_flag(name)} requires {' or '.join(map(_flag, others))}")


def refuse_together(given: Collection[str], name: str, others: Collection[str]) -> None:
    """Refuse options that have no effect together with another one.

    Args:
        given: the names of the options that were given, as attributes.
        name: the other one, as an attribute.
        others: the options that it makes useless.

    Raises:
        ConfigError: such an option is given; the message names both.
    """
    for other in others:
        if name in given and other in given:
            raise ConfigError(f"{_flag(other)} cannot be combined with {_flag(name)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
