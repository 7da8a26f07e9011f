"""``-{zh-hans:计算机;zh-hant:電腦}-``: chooses one of the variants that a reader could choose.

Follows MediaWiki's documentation of its language converter (Writing systems/Syntax).
"""

from __future__ import annotations

import re

# The innermost ones: an outer one is read after these have become text.
_VARIANT = re.compile(r"-\{(?!\{)([^{}]*+)\}-")
_RULE = re.compile(r"\s*(?:[^:;=>]*=>\s*)?([a-z]{2,3}(?:-[a-z]{2,6})?)\s*:(.*)", re.DOTALL)
_BETWEEN_RULES = re.compile(r";\s*(?=(?:[^:;=>]*=>\s*)?[a-z]{2,3}(?:-[a-z]{2,6})?\s*:|$)")
_FLAG = re.compile(r"[ATRDHNS+-]|[a-z]{2,3}(?:-[a-z]{2,6})?|")
_SILENT = frozenset("THN-")
_DEEPEST = 5
# Of several variants the first of these, so that a text is in one script, not in the editors' two.
_PREFERRED = (
    "zh-hans",
    "zh-cn",
    "zh-sg",
    "zh-my",
    "zh",
    "zh-hant",
    "zh-tw",
    "zh-hk",
    "zh-mo",
    "sr-ec",
    "sr-cyrl",
    "kk-cyrl",
    "uz-cyrl",
    "tg",
    "ku-latn",
    "iu",
    "crh-latn",
)


def one_variant(text: str) -> str:
    """Replace each ``-{...}-`` by what a reader of one variant sees."""
    for _ in range(_DEEPEST):
        text, count = _VARIANT.subn(_chosen, text)
        if not count:
            break
    return text


def _chosen(match: re.Match[str]) -> str:
    body: str = match[1]
    flags, bar, rest = body.partition("|")
    given = [flag.strip() for flag in flags.split(";")]
    # Flags before a bar: some show nothing, the others only change the conversion.
    if bar and all(map(_FLAG.fullmatch, given)):
        if _SILENT.intersection(given):
            return ""
        body = rest
    # Rules "code:text" separated by semicolons; the first one of a code counts.
    found: dict[str, str] = {}
    for part in _BETWEEN_RULES.split(body):
        rule = _RULE.fullmatch(part)
        if rule is None:
            if part.strip():
                return body.strip()  # no rules: the text itself, which is not converted
            continue
        found.setdefault(rule[1], rule[2].strip())
    for code in _PREFERRED:
        if code in found:
            return found[code]
    return next(iter(found.values()), "")
