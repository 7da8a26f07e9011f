"""Write ``names.json``: MediaWiki's namespaces, redirects, magic words in each language.

    python -m data_prep.wiki.generate_names MEDIAWIKI_FOLDER

``MEDIAWIKI_FOLDER`` is a MediaWiki release (for example that of Debian's ``mediawiki`` package,
``/usr/share/mediawiki``). Only names are taken: they are what editors type and what dumps contain.
Nothing of MediaWiki is needed afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bertds.errors import DataError, UserError

OUT = Path(__file__).with_name("names.json")

_FILES = ("NS_FILE", "NS_MEDIA")
_CATEGORIES = ("NS_CATEGORY",)
# Options between the bars of a file link. Those with a value ("alt=...") contain a part of it.
_FILE_OPTIONS = re.compile(
    "img_(?:thumbnail|right|left|none|center|framed|frameless|upright|border|baseline|sub|super|top"
    "|text_top|middle|bottom|text_bottom)"
)
# Variables and functions whose result is words that the page itself contains.
_WORDS = (
    "pagename",
    "fullpagename",
    "subpagename",
    "basepagename",
    "rootpagename",
    "formatnum",
    "lc",
    "lcfirst",
    "uc",
    "ucfirst",
)
# Codes that Wikipedias have or had, and that are missing from MediaWiki's list of languages.
_MORE_CODES = (
    "ann",
    "as",
    "bdr",
    "bew",
    "bol",
    "btm",
    "cz",
    "dga",
    "dk",
    "dtp",
    "epo",
    "fat",
    "gpe",
    "iba",
    "igl",
    "jp",
    "kaj",
    "kcg",
    "kge",
    "knc",
    "kus",
    "map-bms",
    "minnan",
    "mos",
    "nan",
    "nr",
    "pcm",
    "rki",
    "rmy",
    "rsk",
    "simple",
    "syl",
    "tdd",
    "tig",
    "tly",
    "tum",
    "zh-cfr",
    "zh-cn",
    "zh-tw",
)

_TOKEN = re.compile(
    r"""
    \#[^\n]* | //[^\n]* | /\*.*?\*/                      # comments
    | '(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.)*)"
    | (?P<word>[A-Za-z_][\w:]*) | (?P<mark>=>|[\[\](),;])
    """,
    re.VERBOSE | re.DOTALL,
)
_ARRAY = r"^\s*(?:public\s+static\s+)?\${name}\s*=\s*(?=\[|array\s*\()"
_FALLBACK = re.compile(r"^\$fallback\s*=\s*'([^']+)'", re.MULTILINE)
_VERSION = re.compile(r"MW_VERSION\s*[=,]\s*'([^']+)'|define\(\s*'MW_VERSION',\s*'([^']+)'")


class _Entry(NamedTuple):
    key: str
    values: list[str]


def php_array(text: str, name: str) -> Iterator[_Entry]:
    """Yield the entries of ``$name = [ 'key' => 'value', 'key' => [ 'a', 'b' ], ... ];``."""
    # A tokenizer for PHP's literals; it stops at the bracket that closes the array.
    start = re.search(_ARRAY.replace("{name}", name), text, re.MULTILINE)
    if start is None:
        return
    depth = 0
    words: list[str] = []
    key = ""

    def entry() -> Iterator[_Entry]:
        if words:
            yield _Entry(key or words[0], words[:] if key else [])
            words.clear()

    for token in _TOKEN.finditer(text, start.end()):
        mark = token["mark"]
        literal = token["single"] if token["single"] is not None else token["double"]
        if literal is not None:
            words.append(re.sub(r"\\(['\"\\])", r"\1", literal))
        elif token["word"] is not None and token["word"] != "array":
            words.append(token["word"])
        elif mark in ("[", "("):
            depth += 1
        elif mark in ("]", ")"):
            depth -= 1
            if depth == 0:
                yield from entry()
                return
        elif mark == "=>":
            word = words.pop()  # of an inner array only the values count
            key = word if depth == 1 else key
        elif mark == "," and depth == 1:
            yield from entry()
            key = ""
        elif mark == ";":
            return


def language_names(text: str) -> dict[str, list[str]]:
    """Return the names of one language's namespaces: ``file``, ``category`` and all ``other``."""
    found: dict[str, list[str]] = {"file": [], "category": [], "other": []}

    def add(namespace: str, name: str) -> None:
        kind = "file" if namespace in _FILES else "other"
        kind = "category" if namespace in _CATEGORIES else kind
        name = name.replace("_", " ").lower()
        if namespace.startswith("NS_") and namespace != "NS_MAIN" and name and "$1" not in name:
            found[kind].append(name)

    for key, values in php_array(text, "namespaceNames"):
        if values:
            add(key, values[0])
    for key, values in php_array(text, "namespaceAliases"):
        if values:
            add(values[-1], key)
    for key, values in php_array(text, "namespaceGenderAliases"):
        for name in values:
            add(key, name)
    return {kind: sorted(set(names)) for kind, names in found.items() if names}


def read_names(mediawiki: Path) -> dict[str, object]:
    """Return the content of ``names.json``.

    Args:
        mediawiki: the folder of a release, with ``languages/messages``.

    Raises:
        DataError: it contains no language files.
    """
    files = sorted((mediawiki / "languages" / "messages").glob("Messages*.php"))
    if not files:
        raise DataError(f"{mediawiki}: no languages/messages/Messages*.php found")
    namespaces, fallbacks, redirects = {}, {}, {}
    switches: set[str] = set()
    options: set[str] = set()
    words: dict[str, set[str]] = {}
    # One file per language; its magic words and their spellings have different uses here.
    for path in files:
        text = path.read_text("utf-8")
        code = path.stem.removeprefix("Messages").lower().replace("_", "-")
        if names := language_names(text):
            namespaces[code] = names
        if fallback := _FALLBACK.search(text):
            fallbacks[code] = [part.strip() for part in fallback[1].split(",")]
        for key, values in php_array(text, "magicWords"):
            spellings = {value.lower() for value in values[1:]}  # the first is case sensitivity
            switches |= {s for s in spellings if s[:2] in ("__", "＿＿")}
            if key == "redirect":
                redirects[code] = sorted({s.strip("'#＃ ").replace("_", " ") for s in spellings})
            elif _FILE_OPTIONS.fullmatch(key):
                options |= {s.partition("$1")[0].rstrip("= ") for s in spellings}
            elif key in _WORDS:
                words.setdefault(key, set()).update(s.rstrip(":：") for s in spellings)
    names_php = (mediawiki / "includes" / "languages" / "data" / "Names.php").read_text("utf-8")
    codes = {entry.key for entry in php_array(names_php, "names")} | set(_MORE_CODES)
    version = _VERSION.search((mediawiki / "includes" / "Defines.php").read_text("utf-8"))
    return {
        "mediawiki": next(filter(None, version.groups())) if version else "",
        "languages": sorted(codes),
        "redirects": redirects,
        "switches": sorted(switches),
        "file_options": sorted(filter(None, options)),
        "words": {key: sorted(spellings) for key, spellings in sorted(words.items())},
        "fallbacks": fallbacks,
        "namespaces": namespaces,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("mediawiki", type=Path, help="a MediaWiki release, such as Debian's")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (%(default)s)")
    args = parser.parse_args(argv)
    try:
        names = read_names(args.mediawiki)
    except UserError as error:
        parser.error(str(error))
    lines = [f" {json.dumps(key)}: {json.dumps(v, ensure_ascii=False)}" for key, v in names.items()]
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
