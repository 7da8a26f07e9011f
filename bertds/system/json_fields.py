"""Reads JSON of unknown origin safely, and checks it key by key against what is expected.

A manifest is read once, through :class:`Field`, in the module that owns its format. Every error is
one line with the file, the key, what was found and what is allowed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bertds.errors import UserError

MOST = 2**63 - 1
"""The largest integer of numpy, torch and HDF5."""
_SHA256 = re.compile("[0-9a-f]{64}")


def is_finite(number: float) -> bool:
    """Return whether a number is finite as a float: 10**400 is an int but not a finite float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: it is not JSON, or is nested so deeply that parsing it would exhaust the stack
            (``json`` alone raises RecursionError, which is not a ValueError).
    """
    try:
        # Some editors write a byte order mark; json ignores it in bytes, but not in text.
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


# An escape: a surrogate pair, half of one (the group), or any other.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def parse_text_json(text: str | bytes) -> Any:
    r"""Parse JSON that contains text to train on or to predict.

    Half of a surrogate pair (``"\ud83d"``, from a text that was cut inside an emoji) is not a
    character and cannot be encoded as UTF-8. It becomes U+FFFD, like other broken characters.

    Raises:
        ValueError: as for :func:`parse_json`; bytes are not UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if "\\ud" in text or "\\uD" in text:
        text = _ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], text)
    return parse_json(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_fields(path: Path, error: type[UserError], *, nan: bool = False) -> Field:
    """Read a file with one JSON object strictly: no repeated key and, unless ``nan``, no NaN.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: (``error``) it cannot be read, or is not a JSON object.
    """
    constant = None if nan else _no_constant
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=constant)
    except FileNotFoundError:
        raise
    except RecursionError:
        raise error(f"{path}: damaged (nested too deeply)") from None
    except OSError as problem:  # no permission, a failing disk: nothing is known of its contents
        raise error(f"{path}: cannot be read ({problem.strerror})") from None
    except ValueError as problem:
        raise error(f"{path}: damaged ({problem})") from None
    if not isinstance(value, dict):
        raise error(f"{path}: not a JSON object")
    return Field(path, "", value, error)


@dataclass(frozen=True, slots=True)
class Field:
    """A value in a JSON file, with its key for error messages."""

    file: Path
    key: str
    """As a user would write it: ``splits.train.shards[3].bytes``; "" for the whole file."""
    value: Any
    error: type[UserError]
    """The class of the errors."""

    def fail(self, expected: str) -> NoReturn:
        """Raise the error for this value."""
        shown = json.dumps(self.value, ensure_ascii=True, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise self.error(f"{self.file}: {self.key} is {shown}: must be {expected}")

    def __getitem__(self, name: str) -> Field:
        """Return a value of an object by its key, which must exist."""
        found = self.get(name)
        if found is None:
            raise self.error(f"{self.file}: the key {self._below(name)!r} is missing")
        return found

    def get(self, name: str) -> Field | None:
        """Return a value of an object by its key, or None if the key is missing."""
        if name not in self.mapping():
            return None
        return Field(self.file, self._below(name), self.value[name], self.error)

    def _below(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def items(self) -> Iterator[tuple[str, Field]]:
        """Yield the keys and values of an object."""
        for name, value in self.mapping().items():
            yield name, Field(self.file, self._below(name), value, self.error)

    def elements(self) -> Iterator[Field]:
        """Yield the values of a list."""
        if not isinstance(self.value, list):
            self.fail("a list")
        for number, value in enumerate(self.value):
            yield Field(self.file, f"{self.key}[{number}]", value, self.error)

    def mapping(self) -> dict[str, Any]:
        """Return the value, which must be an object."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        return self.value

    def only(self, names: Iterable[str]) -> Field:
        """Refuse an object with any other keys; not all of these need to exist."""
        allowed = list(names)
        for name in self.mapping():
            if name not in allowed:
                raise self.error(
                    f"{self.file}: unknown key {self._below(name)!r:.80}; allowed: "
                    f"{', '.join(allowed)}"
                )
        return self

    def integer(self, least: int = 0, most: int = MOST) -> int:
        """Return the value, which must be a whole number (not true, not 1.0)."""
        if type(self.value) is not int or not least <= self.value <= most:
            self.fail(
                f"a whole number, {least:,} or more"
                if most == MOST
                else f"a whole number from {least:,} to {most:,}"
            )
        return self.value

    def number(self, least: float = -math.inf) -> float:
        """Return the value, which must be a finite number."""
        good = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not good or not is_finite(self.value) or self.value < least:
            self.fail("a number" if least == -math.inf else f"a number, {least:g} or more")
        return float(self.value)

    def boolean(self) -> bool:
        """Return the value, which must be true or false."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def text(self) -> str:
        """Return the value, which must be text."""
        if not isinstance(self.value, str):
            self.fail("text")
        return self.value

    def sha256(self) -> str:
        """Return the value, which must be a SHA-256 in lower-case hexadecimal."""
        if not isinstance(self.value, str) or not _SHA256.fullmatch(self.value):
            self.fail("a SHA-256, 64 hexadecimal digits")
        return self.value
