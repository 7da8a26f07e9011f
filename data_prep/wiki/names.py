"""A wiki's names of namespaces, redirects and switches: from its dump, or else from MediaWiki.

```text
<siteinfo> of the dump -+
xml:lang, <dbname>     -+-> options of the unit ("file=dosya") -> Site, once per process
names.json (MediaWiki) -+
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bertds.system.json_fields import parse_json
from data_prep.clean import word_set

_FILE = Path(__file__).with_name("names.json")

_FILE_KEYS, _CATEGORY_KEYS = ("6", "-2"), ("14",)
_NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^>]*>([^<]+)</namespace>')
_LANGUAGE = re.compile(r'<mediawiki\b[^>]*\sxml:lang="([\w-]+)"')
_DATABASE = re.compile(
    r"<dbname>([a-z_]+?)(?:wiki|wiktionary|wikibooks|wikinews|wikiquote"
    r"|wikisource|wikiversity|wikivoyage)</dbname>"
)
# Prefixes of other wikis: what remains of their links is a title that no sentence needs.
_SISTERS = word_set(
    """
    wikipedia wp project portal book draft module timedtext gadget education program topic
    wikt wiktionary commons wikisource s wikiquote q wikibooks b wikinews n wikiversity v
    wikivoyage voy wikispecies species wikidata wikimedia foundation meta m d w mw c
    """
)
_ENGLISH_ONLY = ("portal", "book", "draft", "module", "timedtext", "gadget", "wikipedia")
# Codes of languages at Wikipedia and in MediaWiki: a dump may have either.
_PAIRS = (
    *(("no", "nb"), ("als", "gsw"), ("bat-smg", "sgs"), ("be-x-old", "be-tarask")),
    *(("fiu-vro", "vro"), ("roa-rup", "rup"), ("zh-classical", "lzh"), ("zh-min-nan", "nan")),
    *(("zh-yue", "yue"), ("minnan", "nan"), ("nrm", "nrf"), ("mo", "ro"), ("cz", "cs")),
    *(("dk", "da"), ("jp", "ja"), ("epo", "eo")),
)
# A short word of one language is a name in another: "#Al [[Capone]]".
_LEAST_FOREIGN_REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Site:
    """The names of one wiki, all in lower case, with spaces instead of underscores."""

    language: str
    """MediaWiki's code; "" if the dump does not contain it."""
    files: frozenset[str]
    """Prefixes of links that show nothing in the text: files, media, categories."""
    others: frozenset[str]
    """All other prefixes that are not part of a title: namespaces, sister projects."""
    namespaces: frozenset[str]
    """Namespaces of pages that are not articles, for dumps without <ns>."""
    languages: frozenset[str]
    """Prefixes of links to the same article in other languages."""
    redirects: frozenset[str]
    """Words after ``#`` that make a redirect."""
    templates: str = ""
    """A file with the user's own templates, as ``SHA256:FILE``."""


def normalised(name: str) -> str:
    """Return a name in the form of the tables: ``Not_a_typo`` is ``not a typo``."""
    return name.replace("_", " ").strip().lower()


@lru_cache(maxsize=1)
def _names() -> dict[str, Any]:
    names: dict[str, Any] = parse_json(_FILE.read_text("utf-8"))
    return names


@lru_cache(maxsize=1)
def language_codes() -> frozenset[str]:
    """Return the codes of all languages that MediaWiki and Wikipedia know."""
    return frozenset(_names()["languages"])


@lru_cache(maxsize=1)
def foreign_redirects() -> frozenset[str]:
    """Return the words after ``#`` in redirects, in lower case, of all languages."""
    words = {word for words in _names()["redirects"].values() for word in words}
    return frozenset(w for w in words if len(w) >= _LEAST_FOREIGN_REDIRECT or not w.isascii())


@lru_cache(maxsize=1)
def switches() -> frozenset[str]:
    """Return ``__notoc__`` and the like, in lower case, of all languages."""
    return frozenset(_names()["switches"])


@lru_cache(maxsize=1)
def file_options() -> frozenset[str]:
    """Return ``thumb``, ``left`` and the like, in lower case, of all languages."""
    return frozenset(_names()["file_options"])


@lru_cache(maxsize=1)
def magic_words() -> dict[str, str]:
    """Return MediaWiki's name of a variable or function by each of its spellings."""
    words: dict[str, list[str]] = _names()["words"]
    return {
        spelling: name
        for name, spellings in words.items()
        for spelling in spellings
        # "{{st:...}}": two letters are more likely a template's name than a function's.
        if spelling == name or len(spelling) >= 5 or not spelling.isascii()
    }


def site_options(head: str) -> tuple[str, ...]:
    """Return what the beginning of a dump contains about its wiki, for :func:`site`.

    Args:
        head: the first kilobytes, with ``<siteinfo>`` if there is one.
    """
    found: set[str] = set()
    for key, name in _NAMESPACE.findall(head):
        if key != "0":
            kind = "file" if key in _FILE_KEYS else "category" if key in _CATEGORY_KEYS else "other"
            found.add(f"{kind}={name.replace('_', ' ').lower()}")
    language = _LANGUAGE.search(head) or _DATABASE.search(head)
    if language is not None:
        found.add(f"language={language[1].replace('_', '-').lower()}")
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def site(options: tuple[str, ...] = ("language=en",)) -> Site:
    """Return the names of a wiki.

    Args:
        options: from the dump, by :func:`site_options`; ``templates=SHA256:FILE`` names a file of
            the user.
    """
    given: dict[str, list[str]] = {}
    for option in options:
        key, _, value = option.partition("=")
        given.setdefault(key, []).append(value)
    language = given.get("language", [""])[0]
    # A known language limits the names; otherwise "Datei:" counts as a file in any dump.
    if language or given.keys() & {"file", "category", "other"}:
        known = [*_names_of(language), *_names_of("en")]
    else:
        # Neither a language nor <siteinfo>: a file is a file in any language.
        known = list(_names()["namespaces"].values())
    files = {*given.get("file", ()), *given.get("category", ())}
    files.update(_all(known, ("file", "category")))
    # English names are valid on every wiki.
    own = {*given.get("other", ()), *_all([*_names_of(language), *_names_of("en")], ("other",))}
    redirects = _names()["redirects"]
    codes = (*codes_with_fallbacks(language), "en")
    english = {name + talk for name in _ENGLISH_ONLY for talk in ("", " talk")}
    return Site(
        language=language,
        files=frozenset(files),
        others=frozenset(own | _SISTERS | english),
        namespaces=frozenset(own | files | english),
        languages=language_codes(),
        redirects=frozenset(word for code in codes for word in redirects.get(code, ())),
        templates=given.get("templates", [""])[0],
    )


def codes_of(language: str) -> tuple[str, ...]:
    """Return the codes that tables may use for a language, the most specific one first."""
    codes = [language, language.partition("-")[0]]
    others = [code for pair in _PAIRS for code in pair if set(pair).intersection(codes)]
    return tuple(dict.fromkeys([language, *others, codes[1]]))


def codes_with_fallbacks(language: str) -> tuple[str, ...]:
    """Return the codes of a language and of those that MediaWiki falls back to."""
    codes, fallbacks = codes_of(language), _names()["fallbacks"]
    return tuple(dict.fromkeys([*codes, *(f for code in codes for f in fallbacks.get(code, ()))]))


def _names_of(language: str) -> Iterator[dict[str, list[str]]]:
    """Yield the names of a language and of those that MediaWiki falls back to."""
    namespaces = _names()["namespaces"]
    yield from (namespaces[c] for c in codes_with_fallbacks(language) if c in namespaces)


def _all(names: Iterable[dict[str, list[str]]], kinds: tuple[str, ...]) -> Iterator[str]:
    for one in names:
        for kind in kinds:
            yield from one.get(kind, ())
