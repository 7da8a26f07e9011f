"""Renders the project's pages from the templates in ``templates/``.

A page contains everything that it shows and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bertds.display.theme import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page; the columns in ``numbers`` are right-aligned."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    numbers: Sequence[int] = ()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bertds.display"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty string
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """Return a whole page.

    Args:
        template: a file in ``templates/`` that extends ``page.html.j2``.
        values: the values that the template shows; text is escaped.
    """
    themes = {"light": LIGHT.colours(), "dark": DARK.colours()}
    return _environment().get_template(template).render(**themes, **values)
