"""``[[target|label]]`` becomes what a reader sees; files, categories and languages show nothing."""

from __future__ import annotations

import re

from data_prep.wiki.names import Site, file_options, normalised

# Those that MediaWiki links ($wgUrlProtocols).
_PROTOCOLS = (
    "https?|ftps?|sftp|gopher|telnet|nntp|worldwind|svn|git|mms|ircs?|ssh|redis"
    "|mailto|news|sips?|sms|tel|xmpp|urn|geo|magnet|bitcoin|matrix"
)
# Possessive, and never beyond the next bracket: unclosed ones must not be scanned twice.
EXTERNAL_LINK = re.compile(rf"\[(?:(?:{_PROTOCOLS}):|//)[^\s\[\]]++([^\[\]\n]*+)\]", re.IGNORECASE)
# A link without another one inside, and without a possible namespace: 90% of all. Its visible text
# is the only group, so that split() returns the text and the groups in turn.
PLAIN_LINK = re.compile(r"\[\[(?:[^\[\]|:\n]*+\|)?([^\[\]|:\s][^\[\]|:\n]*+)\]\]")
# Ends before a character that no address contains; marks of East Asia belong to the sentence.
_BARE_ADDRESS = re.compile(
    r"(?:http|ftp)s?://[^\s<>\[\]\"\u3000-\u303f\uff01-\uff0f\uff1a-\uff1f\uff3b-\uff60]++"
)
_DEEPEST_LINK = 30
_LONGEST_PREFIX = 40
_PIXELS = re.compile(r"(?:\d+|\d*x\d+)\s*px")


def link_text(text: str, site: Site) -> str:
    """Replace all links of a text by their visible text."""
    # The plain links first; the cursor below then has few left.
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
    # Links that are never closed: keep the text, drop the brackets.
    levels = [*stack, out]
    # The line of an unclosed file link is its options and caption.
    for level in levels[1:]:
        if level and _is_file(level[0], site):
            level[0] = level[0].partition("\n")[2]
    return "".join(piece for level in levels for piece in level)


def without_addresses(text: str) -> str:
    """Remove bare addresses, with the same ends as in MediaWiki."""
    return _BARE_ADDRESS.sub(_after_address, text)


def _after_address(match: re.Match[str]) -> str:
    """Return the end of a match that belongs to the sentence: a full stop, or a closing bracket."""
    address = match[0]
    end = len(address)
    while end and (
        address[end - 1] in ".,;:!?'"
        or (address[end - 1] == ")" and address.count(")", 0, end) > address.count("(", 0, end))
    ):
        end -= 1
    return address[end:]


def _one_link(inner: str, site: Site) -> str:
    """Return the visible text of ``[[inner]]``."""
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
    return colon > 0 and normalised(target[:colon]) in site.files


def _has_file_options(label: str) -> bool:
    """Return whether options such as ``|thumb|250px|`` show that a link is a file."""
    options = [part.strip().lower() for part in label.split("|")[:-1]]
    return any(o in file_options() or _PIXELS.fullmatch(o) is not None for o in options)


def _is_elsewhere(target: str, site: Site) -> bool:
    """Return whether a link leads to another language or project rather than to a title.

    MediaWiki hides only the former, and shows "Portal: Stories" and "Help:Links". "wikt:word", in
    lower case and without a space, is an address that an editor typed, not words of a sentence.
    """
    written, _, rest = target.partition(":")
    written = written.strip()
    if written in site.languages:
        return True
    return written.islower() and rest[:1] != " " and normalised(written) in site.others
