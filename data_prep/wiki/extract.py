"""Extracts prose from wikitext, in linear time and without ever failing.

```text
page -> hide <nowiki> -> remove comments, references, formulas -> remove templates (a few leave
their words) -> remove tables -> choose one language variant -> links and formatting become text
     -> lines: remove headings, lists, left-overs -> paragraphs -> show <nowiki> again
```

Every step is one pass with a cursor or a literal search, so 10,000 unclosed brackets cost no more
than closed ones. Unbalanced markup costs its line, not the article. docs/wikitext.md describes what
is kept and dropped, and compares it with other extractors.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from bertds.data.scripts import word_count
from data_prep.wiki import literal
from data_prep.wiki.elements import without_elements
from data_prep.wiki.expressions import expression_value
from data_prep.wiki.lines import lines_of, paragraphs_of
from data_prep.wiki.links import EXTERNAL_LINK, link_text, without_addresses
from data_prep.wiki.names import Site, magic_words, site
from data_prep.wiki.quotes import without_quotes
from data_prep.wiki.template_functions import Arguments
from data_prep.wiki.templates import Templates, templates_of
from data_prep.wiki.variants import one_variant

_BRACES = re.compile(r"\{\{+|\}\}+")
# "{{" that opens nothing: words follow instead of a name and a bar.
_UNCLOSED_TEXT = re.compile(r"(\{\{+)([^|{}\[\]]{20,60})(?!\|)")
_LEAST_WORDS = 4
_LONGEST_TEMPLATE = 4000
_LONGEST_NAME = 60
_DEEPEST_TEMPLATE = 4
_MOST_ARGUMENTS = 40
_CASES = {"lc": str.lower, "uc": str.upper}


class _Page(NamedTuple):
    """What templates need to know about the page that they are on."""

    site: Site
    templates: Templates
    title: str


def clean_wikitext(
    text: str, wiki: Site | None = None, title: str = "", *, extracted: bool = False
) -> str:
    """Return the prose of an article, one paragraph per line; "" if there is none.

    Args:
        text: wikitext, with XML's escapes already decoded.
        wiki: the names of the wiki; None = those of an English one.
        title: of the page, which ``{{PAGENAME}}`` shows.
        extracted: an extractor has already chosen the lines; each one is a paragraph.
    """
    if wiki is None:
        wiki = site()
    # Each pass is skipped if its mark does not occur: most pages need only a few.
    if "<" in text:
        text = without_elements(text)
    if has_literal := literal.has_hidden(text):
        text = literal.without_parted(text)
    if "-{{{" in text:
        # This is a template inside a language variant, not a parameter between hyphens.
        text = text.replace("-{{{", "-{ {{").replace("}}}-", "}} }-")
    if "{{" in text or "}}" in text:
        page = _Page(wiki, templates_of(wiki.language, wiki.templates), title)
        text = _without_templates(text, page)
    if "{|" in text:
        text = _without_tables(text)
    text = literal.shown_marks_apart(text)
    if "-{" in text:
        text = one_variant(text)
    if "[" in text:
        text = link_text(text, wiki)
        if "[" in text:
            text = EXTERNAL_LINK.sub(r"\1", text)
    if "''" in text:
        text = without_quotes(text)
    if "&" in text:
        text = literal.unescaped(text)
    text = text.replace("\xa0", " ")
    if "://" in text:
        text = without_addresses(text)
    # Templates and shown marks may hide text too: the apostrophe of {{'}} is not italic.
    has_literal = has_literal or literal.has_hidden(text)
    paragraphs = lines_of(text) if extracted else paragraphs_of(text, wiki.language)
    return "\n".join(literal.show(paragraphs) if has_literal else paragraphs)


# --------------------------------------------------------------------------------------------
# Templates {{...}}, parameters {{{...}}} and tables {|...|}
# --------------------------------------------------------------------------------------------


_Span: TypeAlias = tuple[int, int, int]
"""Start, end, and number of braces: 2 = template, 3 = parameter, 0 = without a partner."""


def _template_spans(text: str) -> list[_Span]:
    """Return the outermost templates and parameters of a text.

    Most texts have only pairs of braces; :func:`_brace_spans` handles the others.
    """
    spans: list[_Span] = []
    stack: list[int] = []
    opening, closing = text.find("{{"), text.find("}}")
    while opening >= 0 or closing >= 0:
        if opening >= 0 and (opening < closing or closing < 0):
            stack.append(opening)
            if text[opening + 2 : opening + 3] == "{":
                return _brace_spans(text)
            opening = text.find("{{", opening + 2)
        else:
            if stack:
                start = stack.pop()
                # Keep only the outermost: it replaces the ones inside it.
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, closing + 2, 2))
            else:
                spans.append(_never_opened(text, closing, closing + 2))
            closing = text.find("}}", closing + 2)
    return _with_unclosed(text, spans, stack)


def _never_opened(text: str, start: int, end: int) -> _Span:
    # Include a following "|", which belonged to a table or a template.
    return start, end + (text[end : end + 1] == "|"), 0


def _with_unclosed(text: str, spans: list[_Span], starts: list[int]) -> list[_Span]:
    for start in starts:  # never closed: the line is lost, not the article
        line_end = text.find("\n", start)
        line_end = len(text) if line_end < 0 else line_end
        match = _UNCLOSED_TEXT.match(text, start, line_end)
        is_text = match is not None and word_count(match[2]) >= _LEAST_WORDS
        spans.append((start, match.end(1) if match is not None and is_text else line_end, 0))
    if starts:
        spans.sort()
    return spans


def _brace_spans(text: str) -> list[_Span]:
    """Return the outermost templates and parameters, braces paired as MediaWiki pairs them.

    A closing run takes up to three braces of the last opening run: ``{{a|{{{b|}}}}}`` is a template
    with a parameter in it.
    """
    spans: list[_Span] = []
    open_runs: list[list[int]] = []  # position, braces left
    for match in _BRACES.finditer(text):
        start, end = match.span()
        if text[start] == "{":
            open_runs.append([start, end - start])
            continue
        while end - start >= 2 and open_runs:
            run = open_runs[-1]
            braces = min(end - start, run[1], 3)
            run[1] -= braces
            begin = run[0] + run[1]
            if run[1] < 2:
                open_runs.pop()
            # Keep only the outermost: it replaces the ones inside it.
            while spans and spans[-1][0] > begin:
                spans.pop()
            start += braces
            spans.append((begin, start, braces))
        if end - start >= 2:
            spans.append(_never_opened(text, start, end))
    return _with_unclosed(text, spans, [begin for begin, _ in open_runs])


def _without_templates(text: str, page: _Page, depth: int = 0) -> str:
    """Remove templates; those in the wiki's table leave their words behind."""
    pieces = []
    position = 0
    for start, end, braces in _template_spans(text):
        # Inside something that was already removed.
        if end <= position:
            continue
        pieces.append(text[position : max(start, position)])
        if start >= position and end - start < _LONGEST_TEMPLATE and depth < _DEEPEST_TEMPLATE:
            if braces == 2:
                words = _template_words(text, start + 2, end - 2, page, depth)
                if words:
                    # The "!" of "{{lang|ktz|!Xun}}" is not a heading of a table.
                    pieces.append(literal.NOTHING + words if words[0] == "!" else words)
            elif braces == 3:  # a page that is shown on its own uses the default value
                default = text[start + 3 : end - 3].partition("|")[2]
                pieces.append(_without_templates(default, page, depth + 1))
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _template_words(text: str, start: int, end: int, page: _Page, depth: int) -> str:
    """Return the words that the template ``text[start:end]`` leaves in the sentence."""
    bar = text.find("|", start, min(end, start + _LONGEST_NAME))
    written = text[start : bar if bar >= 0 else min(end, start + _LONGEST_NAME)].strip()
    name = written.lower()
    names = page.templates.names
    words = names[name] if name in names else page.templates.find(name)
    if words is not None:
        return words(_arguments(written, text[start:end], page, depth))
    if ":" in name:
        return _function_words(text[start:end], page, depth)
    return page.title if bar < 0 and _is_page_name(name) else ""


def _is_page_name(name: str) -> bool:
    return magic_words().get(name.replace(" ", "_"), "").endswith("pagename")


def _function_words(body: str, page: _Page, depth: int) -> str:
    """Return the words of ``{{formatnum:3003}}``, ``{{lc:Word}}`` or ``{{Template:Name|...}}``."""
    name, _, rest = body.partition(":")
    name = name.strip().lower()
    word = magic_words().get(name.replace(" ", "_"), "")
    if word and not word.endswith("pagename"):
        rest = rest.partition("|")[0].strip()
        if "{{" in rest:
            rest = _without_templates(rest, page, depth + 1)
        if word == "formatnum":
            return _formatted(rest, body, page)
        if word in ("lcfirst", "ucfirst"):
            return _CASES[word[:2]](rest[:1]) + rest[1:]
        return _CASES.get(word, str)(rest)
    if name == "#expr":
        if "{{" in rest:
            rest = _without_templates(rest, page, depth + 1)
        return expression_value(rest)
    # These prefixes only say where the template is, so the rest is an ordinary template.
    if name in ("subst", "safesubst", "template") or name in page.site.others:
        return _template_words(rest, 0, len(rest), page, depth + 1) if rest[:1] != "#" else ""
    return ""


def _formatted(number: str, body: str, page: _Page) -> str:
    """Return ``{{formatnum:1234567}}`` as the language writes numbers; with ``|R`` the reverse."""
    ways = page.templates.conventions
    option = body.rpartition("|")[2].strip().upper()
    if option == "R":
        return number.replace(ways.group, "").replace(ways.decimal, ".")
    return ways._replace(group="").number(number) if option == "NOSEP" else ways.number(number)


def _arguments(written: str, body: str, page: _Page, depth: int) -> Arguments:
    """Read a template's arguments; templates and links in them become the words that they show."""
    if "{{" in body:
        body = _without_templates(body, page, depth + 1)
    if "[[" in body:
        # "{{lang|en|[[A|B}} C]]": a link that the template cuts off ends with the template.
        body += "]]" * (body.count("[[") - body.count("]]"))
        body = link_text(body, page.site)
    positional: list[str] = []
    numbered: dict[int, str] = {}
    named: dict[str, str] = {}
    for argument in body.split("|")[1:]:
        key, equals, value = argument.partition("=")
        if not equals:
            positional.append(argument.strip())
        elif (key := key.strip()).isdecimal() and len(key) <= 2:
            numbered[int(key)] = value.strip()
        else:
            named[key] = value.strip()
    # "2=" replaces or adds the second positional argument.
    for number, value in sorted(numbered.items()):
        if 0 < number <= _MOST_ARGUMENTS:
            positional += [""] * (number - len(positional))
            positional[number - 1] = value
    return Arguments(written, positional, named)


def _without_tables(text: str) -> str:
    """Remove tables; only "{|" and "|}" at the beginning of a line count."""
    # Tables can be nested, so openings wait on a stack for their closings.
    spans: list[tuple[int, int]] = []
    stack: list[int] = []
    opening, closing = text.find("{|"), text.find("|}")
    while opening >= 0 or closing >= 0:
        if opening >= 0 and (opening < closing or closing < 0):
            if _begins_line(text, opening):
                stack.append(opening)
            opening = text.find("{|", opening + 2)
        else:
            if stack and _begins_line(text, closing):
                start = stack.pop()
                # An outer table replaces the tables inside it.
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, closing + 2))
            closing = text.find("|}", closing + 2)
    pieces = []
    position = 0
    for start, end in spans:
        pieces.append(text[position:start])
        pieces.append("\n\n")
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _begins_line(text: str, position: int) -> bool:
    # Indentation and list marks may come before a table.
    before = position - 1
    while before >= 0 and text[before] in " \t:*#" and position - before < 20:
        before -= 1
    return before < 0 or text[before] == "\n"
