"""How a language writes dates and numbers, as ``templates.yaml`` describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Conventions(NamedTuple):
    """How a language writes dates and numbers."""

    form: str
    """Pattern of a date: {d}, {m}, {y}."""
    months: tuple[str, ...]
    first: str = ""
    """The first day of a month, if it is written differently ("1er")."""
    group: str = ","
    """Separator between groups of three digits."""
    decimal: str = "."
    least: int = 4
    """Number of digits from which a number is grouped."""
    lakhs: bool = False
    """Groups of two digits before the last three (India)."""
    ranges: Mapping[str, str] = {}
    """"To", "and", "or", "by" between numbers; otherwise a dash, a comma, a slash, a cross."""

    def number(self, text: str) -> str:
        """Return a number, written as ``-1234567.8`` on the page, as the language writes it."""
        match = _PLAIN_NUMBER.fullmatch(text)
        if match is None:
            return text
        sign, whole, fraction = match.groups()
        if len(whole) >= self.least:
            whole = (_LAKHS if self.lakhs else _THOUSANDS).sub(self.group, whole)
        return f"{sign}{whole}{self.decimal}{fraction}" if fraction else f"{sign}{whole}"


_PLAIN_NUMBER = re.compile(r"([-−]?)(\d+)(?:\.(\d+))?", re.ASCII)
_THOUSANDS = re.compile(r"(?<=\d)(?=(?:\d{3})+$)")
_LAKHS = re.compile(r"(?<=\d)(?=(?:\d{2})*\d{3}$)")


def conventions_of(
    dates: Mapping[str, object], numbers: Mapping[str, object], ranges: Mapping[str, object]
) -> Conventions:
    """Build the conventions from entries of ``dates:``, ``numbers:`` and ``ranges:``."""
    months = dates.get("months")
    return Conventions(
        form=str(dates.get("form", "")),
        months=tuple(months) if isinstance(months, list) else (),
        first=str(dates.get("first", "")),
        group=str(numbers.get("group", ",")),
        decimal=str(numbers.get("decimal", ".")),
        least=5 if numbers.get("least") == 5 else 4,
        lakhs=numbers.get("lakhs") is True,
        ranges={key: str(word) for key, word in ranges.items()},
    )
