"""The templates whose words belong to a sentence, and how to read them.

All others are dropped. ``data_prep/wiki/templates.yaml`` defines what each one shows, by language.
A user's file of the same form has precedence::

    fr:
      "{1} ({2})": [mon modèle]

What a text in braces cannot express is a function of data_prep/wiki/template_functions.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml

from bertds.errors import ConfigError, reason_of
from bertds.system.yaml_text import FastLoader, load_yaml
from data_prep.wiki.conventions import Conventions, conventions_of
from data_prep.wiki.names import codes_of, codes_with_fallbacks, normalised
from data_prep.wiki.template_functions import FUNCTIONS, Arguments

_FILE = Path(__file__).with_name("templates.yaml")

TemplateText = Callable[[Arguments], str]
Table: TypeAlias = dict[str, dict[str, Any]]

_PARAMETER = re.compile(r"\\(.)|\{([^{}\[\]]*)\}|(\[)|(\])", re.DOTALL)
# A template of another language's wiki is found by its name, unless the name is as short as a code.
_LEAST_FOREIGN = 4
_CONVENTIONS = ("dates", "numbers", "ranges")
_MOST_NAMES = 50_000


class Templates(NamedTuple):
    """The templates for reading the text of one wiki."""

    names: dict[str, TemplateText | None]
    """By name, in lower case with spaces. None for names that were looked up and leave nothing."""
    prefixes: tuple[tuple[str, TemplateText], ...]
    suffixes: tuple[tuple[str, TemplateText], ...]
    conventions: Conventions

    def find(self, name: str) -> TemplateText | None:
        """Return the function that reads a template; None if the template leaves nothing."""
        found = self._find(normalised(name))
        if len(self.names) < _MOST_NAMES:
            self.names[name] = found  # a few templates make up most of the uses: {{cite web}}
        return found

    def _find(self, name: str) -> TemplateText | None:
        if name in self.names:
            return self.names[name]
        for prefix, text in self.prefixes:
            if name.startswith(prefix):
                return text
        return next((text for suffix, text in self.suffixes if name.endswith(suffix)), None)


@lru_cache(maxsize=64)
def templates_of(language: str, user_file: str = "") -> Templates:
    """Return the templates of a wiki.

    Args:
        language: of the wiki. Its own entries have precedence over those of ``all`` and of English,
            and these over those of other languages.
        user_file: ``SHA256:FILE`` of the user's file, which has precedence over all; "" = none.

    Raises:
        ConfigError: the user's file cannot be read, or an entry is not valid.
    """
    shipped = _shipped()
    codes = codes_of(language)
    own = [code for code in (*codes, "all", "en") if code in shipped]
    others = [code for code in shipped if code not in own and code not in _CONVENTIONS]
    found: dict[str, TemplateText] = {}
    ways = _conventions({}, shipped, language)
    # _add keeps the first entry of a name, so entries are added by precedence.
    if user_file:
        user_file = user_file.partition(":")[2]
        users = _read(Path(user_file))
        ways = _conventions(users, shipped, language)
        for code in (*codes, "all"):
            _add(found, users.get(code, {}), ways, user_file)
    for code in dict.fromkeys(own):
        _add(found, shipped[code], ways, str(_FILE))
    for code in others:
        foreign: dict[str, TemplateText] = {}
        _add(foreign, shipped[code], _conventions({}, shipped, code), str(_FILE))
        for name, text in foreign.items():
            if len(name.strip("*")) >= _LEAST_FOREIGN or not name.isascii():
                found.setdefault(name, text)
    # "cite*" and "*icon" are prefixes and suffixes of names.
    prefixes = tuple((n[:-1], text) for n, text in found.items() if n[-1:] == "*")
    suffixes = tuple((n[1:], text) for n, text in found.items() if n[:1] == "*" != n[-1:])
    names = {name: text for name, text in found.items() if "*" not in (name[:1], name[-1:])}
    return Templates({**names}, prefixes, suffixes, ways)


def check_file(path: Path) -> None:
    """Check a user's file.

    Raises:
        ConfigError: it cannot be read, or an entry is not valid.
    """
    for code, entries in _read(path).items():
        if code not in _CONVENTIONS:
            _add({}, entries, Conventions("", ()), str(path))


def _conventions(users: Table, shipped: Table, language: str) -> Conventions:
    dates, numbers, ranges = (_entry(users, shipped, k, language or "en") for k in _CONVENTIONS)
    return conventions_of(dates or shipped["dates"]["en"], numbers, ranges)


def _entry(users: Table, shipped: Table, kind: str, language: str) -> Mapping[str, Any]:
    """Return the entry of a table for a language's dates or numbers; {} if there is none."""
    for table in (users, shipped):
        for code in codes_with_fallbacks(language):
            entry = table.get(kind, {}).get(code)
            if isinstance(entry, dict):
                return entry
    return {}


@lru_cache(maxsize=1)
def _shipped() -> Table:
    return _read(_FILE)


def _read(path: Path) -> Table:
    try:
        value = load_yaml(path.read_text("utf-8"), FastLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    wanted = 'expected languages, each with entries "what it shows": [names]'
    if not isinstance(value, dict) or not all(isinstance(code, str) for code in value):
        raise ConfigError(f"{path}: {wanted}")
    for code, entries in value.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: {code}: {wanted}")
    return value


def _add(
    found: dict[str, TemplateText], entries: Mapping[str, Any], ways: Conventions, path: str
) -> None:
    """Add the entries of one language; existing names are kept."""
    for shown, given in entries.items():
        names = given if isinstance(given, list) else [given]
        if not isinstance(shown, str) or not all(isinstance(n, str) and n for n in names):
            raise ConfigError(f"{path}: {shown!r}: {given!r}: expected a text and a list of names")
        text = _compiled(shown, ways, path)
        for name in names:
            found.setdefault(normalised(name), text)


def _compiled(shown: str, ways: Conventions, path: str) -> TemplateText:
    if shown[:1] == "=" and len(shown) > 1:
        function = FUNCTIONS.get(shown[1:])
        if function is None:
            raise ConfigError(f"{path}: {shown}: no such function; allowed: {', '.join(FUNCTIONS)}")
        return lambda arguments: function(arguments, ways)
    parts, open_groups = _parsed(_PARAMETER.finditer(shown), shown)
    if open_groups:
        raise ConfigError(f"{path}: {shown!r}: unbalanced brackets")
    if any(isinstance(part, tuple) for part in parts):
        # "« {1} »" without a value shows nothing.
        return lambda arguments: _unless_empty(*_filled(parts, arguments))
    return lambda arguments: _filled(parts, arguments)[0]


class _Group(list["_Part"]):
    """Parts in square brackets, which are omitted together if no value is given."""


_Part: TypeAlias = "str | tuple[str, ...] | _Group"


def _parsed(marks: Iterator[re.Match[str]], shown: str) -> tuple[_Group, int]:
    """Return the parts of a pattern (text, parameter names to try in turn, groups), open groups."""
    stack = [_Group()]
    position = 0
    for mark in marks:
        stack[-1].append(shown[position : mark.start()])
        position = mark.end()
        if mark[1]:
            stack[-1].append(mark[1])
        elif mark[2] is not None:
            stack[-1].append(tuple(mark[2].split("|")))
        elif mark[3]:
            stack.append(_Group())
        elif len(stack) > 1:
            group = stack.pop()
            stack[-1].append(group)
        else:
            return stack[0], 1
    stack[-1].append(shown[position:])
    return stack[0], len(stack) - 1


def _filled(parts: _Group, arguments: Arguments) -> tuple[str, bool]:
    """Return the text of a pattern, and whether an argument in it had a value."""
    pieces = []
    any_value = False
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, _Group):
            text, has_value = _filled(part, arguments)
            if has_value:
                pieces.append(text)
                any_value = True
        else:
            value = next(filter(None, map(arguments.get, part)), "")
            any_value = any_value or bool(value)
            pieces.append(value or _text_of(part[-1]))
    return "".join(pieces), any_value


def _unless_empty(text: str, has_value: bool) -> str:
    return text if has_value else ""


def _text_of(name: str) -> str:
    """Return the text for a missing value: ``{2|'e'}`` is "e" without a second argument."""
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == "'" else ""
