"""``[[target|label]]`` to what a reader sees; files, categories and languages show nothing."""

from __future__ import annotations

import re

from data_prep.wiki.names import Site, file_options

# Possessive, and never over the next bracket: what is not closed must not be scanned twice.
EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*+([^\[\]\n]*+)\]")
# A link that holds no other, with nothing in it that could be a namespace: nine of ten. What it
# shows is the one group, so that text and groups in a row are the result.
PLAIN_LINK = re.compile(r"\[\[(?:[^\[\]|:\n]*+\|)?([^\[\]|:\s][^\[\]|:\n]*+)\]\]")
_DEEPEST_LINK = 30
_LONGEST_PREFIX = 40
_PIXELS = re.compile(r"(?:\d+|\d*x\d+)\s*px")


def link_text(text: str, site: Site) -> str:
    """Replace all links of a text."""
    text = "".join(PLAIN_LINK.split(text))
    opening, closing = text.find("[["), text.find("]]")
    out: list[str] = []
    stack: list[list[str]] = []
    position = 0
    while opening >= 0 or closing >= 0:
        if opening >= 0 and (opening < closing or closing < 0):
            out.append(text[position:opening])
            position = opening + 2
            if len(stack) < _DEEPEST_LINK:
                stack.append(out)
                out = []
            opening = text.find("[[", position)
        else:
            if text[closing + 2 : closing + 3] == "]" and "[" in text[position:closing]:
                closing += 1  # [[File:...|see [http://x y]]]
            out.append(text[position:closing])
            if stack:
                inner = out[0] if len(out) == 1 else "".join(out)
                out = stack.pop()
                out.append(_one_link(inner, site))
            position = closing + 2
            closing = text.find("]]", position)
            if 0 <= opening < position:
                opening = text.find("[[", position)
    out.append(text[position:])
    # Never closed: keep the text, drop the brackets.
    levels = [*stack, out]
    for level in levels[1:]:
        if level and _is_file(level[0], site):
            level[0] = level[0].partition("\n")[2]
    return "".join(piece for level in levels for piece in level)


def _one_link(inner: str, site: Site) -> str:
    target, bar, label = inner.partition("|")
    if ":" in target:
        target = target.strip()
        if target.startswith(":"):
            target = target[1:]
        elif (
            _is_file(target, site)
            or ("|" in label and _has_file_options(label))
            or (not bar and _is_elsewhere(target, site))
        ):
            return ""
    if not bar:
        return target
    if not label.strip():
        return target.partition("(")[0].rstrip()  # the "pipe trick"
    return label


def _shows_nothing(target: str, bar: str, label: str, site: Site) -> bool:
    if _is_file(target, site) or ("|" in label and _has_file_options(label)):
        return True
    return not bar and _is_elsewhere(target, site)


def _is_file(target: str, site: Site) -> bool:
    colon = target.find(":", 0, _LONGEST_PREFIX)
    return colon > 0 and _prefix(target[:colon]) in site.files


def _prefix(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _has_file_options(label: str) -> bool:
    """Tell a file of a namespace that is not known by its ``|thumb|250px|``."""
    options = [part.strip().lower() for part in label.split("|")[:-1]]
    return any(o in file_options() or _PIXELS.fullmatch(o) is not None for o in options)


def _is_elsewhere(target: str, site: Site) -> bool:
    """Tell a link to another language, project or namespace from a title with a colon in it.

    Codes are written in lower case in all wikis, and "M: Man", "CSI: Miami" are titles.
    """
    written, _, rest = target.partition(":")
    written = written.strip()
    if written in site.languages:
        return True
    if _prefix(written) not in site.others:
        return False
    return len(written) > 2 or (written.islower() and rest[:1] != " ")
