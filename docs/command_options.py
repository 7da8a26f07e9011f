"""A hook of MkDocs: docs/reference/commands.md gets every option, from the parsers themselves.

The line ``<!-- options -->`` of a page is replaced while the documentation is built, so that no
copy of the options can be out of date.
"""

from __future__ import annotations

import contextlib
import io
import os
import re

from bertds.cli import COMMANDS
from bertds.cli import main as bertds

MARK = "<!-- options -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the options in the place of the mark; MkDocs calls it for each page."""
    return markdown.replace(MARK, options()) if MARK in markdown else markdown


def options() -> str:
    """Return the help of every command and of its actions, as Markdown."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        parts = [part for name in COMMANDS for part in _command(name)]
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "\n\n".join(parts)


def _command(name: str) -> list[str]:
    text = help_of(name)
    named = ["show"] if name == "prep" else actions(text)
    return [_section(f"## bertds {name}", text)] + [
        _section(f"### bertds {name} {action}", help_of(name, action)) for action in named
    ]


def _section(head: str, text: str) -> str:
    return f"{head}\n\n```text\n{text}\n```"


def help_of(name: str, *words: str) -> str:
    """Return what ``bertds NAME ... --help`` prints, rarely used options included."""
    every = "--help-all" if name == "prep" and not words else "--help"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        bertds([name, *words, every])
    return out.getvalue().rstrip()


def actions(text: str) -> list[str]:
    """Return the actions of a command such as ``bertds config``: ``show``, ``explain`` ..."""
    found = re.search(r"^  \{([\w,-]+)\}$", text, re.MULTILINE)
    return found.group(1).split(",") if found else []
