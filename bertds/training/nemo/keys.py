"""The keys of a foreign YAML file: references resolved, and each key taken or refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from bertds.errors import ConfigError

_MISSING = object()


@dataclass(slots=True)
class Translation:
    """Our recipe and DeepSpeed JSON for a NeMo file, with notes about what differs."""

    recipe: dict[str, dict[str, Any]]
    deepspeed: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def resolve_references(flat: dict[str, Any]) -> dict[str, Any]:
    """Replace ``${model.max_seq_length}`` and the like by the value of the named key.

    Raises:
        ConfigError: the key does not exist, or refers to itself.
    """

    def value_of(key: str, seen: tuple[str, ...]) -> Any:
        value = flat[key]
        found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if found is None:
            if isinstance(value, str) and "${" in value:
                raise ConfigError(
                    f"{key}={value!r}: only a value that is entirely ${{other.key}} is supported"
                )
            return value
        target = found[1]
        if target not in flat or target in seen:
            why = "refers to itself" if target in seen else "there is no such key"
            raise ConfigError(f"{key}={value!r}: {why}")
        return value_of(target, (*seen, target))

    return {key: value_of(key, (key,)) for key in flat}


class Keys:
    """The keys of a file. Records which were read, so that the others can be refused."""

    def __init__(self, flat: dict[str, Any], source: str) -> None:
        self.flat, self.source, self.taken = flat, source, set[str]()

    def take(self, *keys: str, default: Any = None) -> Any:
        """Return the first non-null value among several spellings of one setting."""
        value = _MISSING
        for key in keys:
            if key in self.flat:
                self.taken.add(key)
                # "???" is Hydra's mark of a value that the user must give.
                if value is _MISSING and self.flat[key] not in (None, "???"):
                    value = self.flat[key]
        return default if value is _MISSING else value

    def number(self, *keys: str, default: Any = None) -> Any:
        """Return a number, including one that YAML reads as text (3e-5)."""
        value = self.take(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float, str, type(None))):
            self.fail(keys[0], value, "a number")
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return self.fail(keys[0], value, "a number")

    def fail(self, key: str, value: object, allowed: str) -> NoReturn:
        """Refuse a value."""
        raise ConfigError(f"{self.source}: {key}={value!r} is not supported; allowed: {allowed}")

    def expect(self, key: str, allowed: Iterable[Any], why: str) -> None:
        """Read a key for which only these values are supported here."""
        value = self.take(key, default=_MISSING)
        if value is not _MISSING and value not in allowed:
            self.fail(key, value, why)
