"""The parser of the commands' arguments, and options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from bertds.errors import one_line

OVERRIDES = "override recipe keys, or DeepSpeed JSON keys with deepspeed.KEY=VALUE"


class CommandParser(argparse.ArgumentParser):
    """A parser whose error is one line, and names what an unknown argument was meant to be."""

    _unknown: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]  # without the overload for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read the arguments, and remember the unknown ones for the error of ``parse_args``."""
        known, unknown = super().parse_known_args(args, namespace)
        self._unknown = unknown
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end the process."""
        hint = self._meant(self._unknown[0]) if self._unknown else ""
        super().error(one_line(message + hint))

    def _meant(self, argument: str) -> str:
        options = set(self._options())
        if argument.startswith("-"):
            close = get_close_matches(argument.partition("=")[0], options, n=1)
            return f" (did you mean {close[0]}?)" if close else ""
        key, equals, _ = argument.partition("=")
        if equals and key.replace(".", "").isidentifier() and "--set" in options:
            return f" (did you mean --set {argument}?)"
        return ""

    def _options(self) -> Iterator[str]:
        """Yield the options of this parser and of its actions' own parsers."""
        for action in self._actions:
            yield from action.option_strings if action.help != argparse.SUPPRESS else ()
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._options()


def add_overrides(parser: argparse.ArgumentParser, text: str = OVERRIDES) -> None:
    """Add ``--set KEY=VALUE ...``, which may be repeated.

    Args:
        parser: of the command.
        text: the help of the option.
    """
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``RUN...``."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, or folders that contain several",
    )
