"""``[[target|label]]`` to what a reader sees; files, categories and languages show nothing."""

from __future__ import annotations

import re

from data_prep.wiki.names import Site, file_options

# Possessive, and never over the next bracket: what is not closed must not be scanned twice.
EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*+([^\[\]\n]*+)\]")
# A link that holds no other, with nothing in it that could be a namespace: nine of ten. What it
# shows is the one group, so that text and groups in a row are the result.
PLAIN_LINK = re.compile(r"\[\[(?:[^\[\]|:\n]*+\|)?([^\[\]|:\s][^\[\]|:\n]*+)\]\]")
# Up to what no address holds; a mark of East Asia is of the sentence around it.
_BARE_ADDRESS = re.compile(
    r"(?:http|ftp)s?://[^\s<>\[\]\"\u3000-\u303f\uff01-\uff0f\uff1a-\uff1f\uff3b-\uff60]++"
)
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


def without_addresses(text: str) -> str:
    """Cut bare addresses out, as long as MediaWiki takes them to be."""
    return _BARE_ADDRESS.sub(_after_address, text)


def _after_address(match: re.Match[str]) -> str:
    """Return what of a bare address is the sentence's: its full stop, a bracket opened before."""
    address = match[0]
    end = len(address)
    while end and (
        address[end - 1] in ".,;:!?'"
        or (address[end - 1] == ")" and address.count(")", 0, end) > address.count("(", 0, end))
    ):
        end -= 1
    return address[end:]


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


def _is_file(target: str, site: Site) -> bool:
    colon = target.find(":", 0, _LONGEST_PREFIX)
    return colon > 0 and _prefix(target[:colon]) in site.files


def _prefix(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _has_file_options(label: str) -> bool:
    """Recognise a file of a namespace that is not known by its ``|thumb|250px|``."""
    options = [part.strip().lower() for part in label.split("|")[:-1]]
    return any(o in file_options() or _PIXELS.fullmatch(o) is not None for o in options)


def _is_elsewhere(target: str, site: Site) -> bool:
    """Recognise a link to another language, or a bare address in another project, from a title.

    MediaWiki hides the former alone, and shows "Portal: Stories" and "Help:Links". "wikt:word", in
    lower case and without a space, is what an editor typed and no words of a sentence.
    """
    written, _, rest = target.partition(":")
    written = written.strip()
    if written in site.languages:
        return True
    return written.islower() and rest[:1] != " " and _prefix(written) in site.others
