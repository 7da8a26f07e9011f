"""Wikitext to prose, in linear time and without ever failing.

```text
page -> comments, references, formulas out -> templates out (a few keep their words) -> tables out
     -> links and formatting to their text -> lines: headings, lists, left-overs out -> paragraphs
```

Every step is one pass with a cursor or a literal search, so that ten thousand unclosed brackets
cost no more than closed ones. What is unbalanced costs its line, not the article. What is kept and
dropped, and how that compares with other extractors, is written in docs/data_preparation.md.
"""

from __future__ import annotations

import re

from data_prep.clean import unescape, word_set
from data_prep.wiki.formulas import LONGEST, formula_text
from data_prep.wiki.lines import paragraphs_of
from data_prep.wiki.templates import TEMPLATE_TEXT

# Elements whose content is not prose. Names in lower case.
_DROPPED_ELEMENTS = word_set(
    """
    ref references math chem ce gallery timeline syntaxhighlight source score hiero imagemap
    graph mapframe maplink templatedata categorytree inputbox includeonly indicator table
    style script pre
    """
)
# Elements that end a paragraph.
_BLOCK_ELEMENTS = frozenset(
    ["br", "p", "div", "blockquote", "poem", "center", "li", "ul", "ol", "dl", "dd", "dt", "hr"]
)
_MARKUP = re.compile(r"<(?:!--|(/?)([a-zA-Z][a-zA-Z0-9]*)(?=[\s/>]))")

_FILE_NAMESPACES = word_set(
    """
    file image media category datei bild kategorie fichier catégorie archivo imagen
    categoría immagine categoria arquivo imagem bestand categorie plik kategoria файл
    категория
    """
)
_OTHER_NAMESPACES = word_set(
    """
    wikipedia wp project help template portal user talk special draft module mediawiki book
    wikt wiktionary commons wikisource s wikiquote q wikibooks b wikinews n wikiversity v
    wikispecies species meta m d w mw c
    """
)
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z]+){0,2}|simple")

# Possessive, and never over the next bracket: what is not closed must not be scanned twice.
_EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*+([^\[\]\n]*+)\]")
_QUOTES = re.compile(r"(''+)")
_BARE_ADDRESS = re.compile(r"https?://[^\s<>\[\]]*[^\s<>\[\].,;:!?)'\"]")
# A link that holds no other, with nothing in it that could be a namespace: nine of ten. What it
# shows is the one group, so that text and groups in a row are the result.
_PLAIN_LINK = re.compile(r"\[\[(?:[^\[\]|:\n]*+\|)?([^\[\]|:\s][^\[\]|:\n]*+)\]\]")
_DEEPEST_LINK = 30
_KEPT_ARGUMENTS = ("1=", "2=", "text=", "display=t")


def clean_wikitext(text: str) -> str:
    """Return the prose of an article: paragraphs, one a line; empty if there is none.

    Args:
        text: wikitext with XML's own escapes already undone.
    """
    if "<" in text:
        text = _without_elements(text)
    if "{{" in text:
        text = without_templates(text)
    if "{|" in text:
        text = _without_tables(text)
    if "[" in text:
        text = _link_text(text)
        if "[" in text:
            text = _EXTERNAL_LINK.sub(r"\1", text)
    if "''" in text:
        # Five quotes are bold italic, four are bold and one apostrophe.
        pieces = _QUOTES.split(text)
        pieces[1::2] = ["'" if len(run) % 5 in (1, 4) else "" for run in pieces[1::2]]
        text = "".join(pieces)
    if "&" in text:
        text = unescape(text)
    text = text.replace("\xa0", " ")
    if "://" in text:
        text = _BARE_ADDRESS.sub("", text)
    return "\n".join(paragraphs_of(text))


# --------------------------------------------------------------------------------------------
# Elements: <!-- -->, <ref>, <br>
# --------------------------------------------------------------------------------------------


def _without_elements(text: str) -> str:
    pieces = []
    position = 0
    never_closed: set[str] = set()
    match = _MARKUP.search(text)
    while match is not None:
        start = match.start()
        name = (match[2] or "").lower()
        if not name:
            end = text.find("-->", start + 4)
            end = len(text) if end < 0 else end + 3
            replacement = ""
        else:
            close = text.find(">", match.end(), match.end() + 2000)
            if close < 0:
                # "<ref" without ">": an unfinished tag costs the rest of its line.
                close = text.find("\n", match.end())
                close = len(text) if close < 0 else close
                end, replacement = close, ""
            else:
                end = close + 1
                replacement = "\n\n" if name in _BLOCK_ELEMENTS else ""
                opening = not match[1] and text[close - 1] != "/"
                if opening and name in _DROPPED_ELEMENTS:
                    inside = end
                    end = _element_end(text, name, match[2], end, never_closed)
                    if name == "math":
                        replacement = formula_text(_content(text, inside, end))
        pieces.append(text[position:start])
        if replacement:
            pieces.append(replacement)
        position = end
        match = _MARKUP.search(text, position)
    pieces.append(text[position:])
    return "".join(pieces)


def _content(text: str, start: int, end: int) -> str:
    """Return what stands between ``start`` and the closing tag that ends at ``end``, if short."""
    close = text.rfind("</", start, end) if end - start < 2 * LONGEST else -1
    return text[start:close] if close >= 0 else ""


def _element_end(text: str, name: str, written: str, start: int, never_closed: set[str]) -> int:
    """Return where ``</name>`` ends, or the end of the line if it is never closed."""
    if name not in never_closed:
        for spelling in dict.fromkeys((written, name, name.upper(), name.capitalize())):
            close = text.find(f"</{spelling}", start)
            if close >= 0:
                close = text.find(">", close)
                return len(text) if close < 0 else close + 1
        # Remembered, so that many unclosed ones do not each search to the end of the page.
        never_closed.add(name)
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


# --------------------------------------------------------------------------------------------
# Templates {{...}} and tables {|...|}
# --------------------------------------------------------------------------------------------


def without_templates(text: str, depth: int = 0) -> str:
    """Cut templates out; those of :data:`TEMPLATE_TEXT` leave their words behind."""
    spans: list[tuple[int, int]] = []
    stack: list[int] = []
    opening, closing = text.find("{{"), text.find("}}")
    while opening >= 0 or closing >= 0:
        if opening >= 0 and (opening < closing or closing < 0):
            stack.append(opening)
            opening = text.find("{{", opening + 2)
        else:
            if stack:
                start = stack.pop()
                # Only what no other template holds: inner ones go with it.
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, closing + 2))
            else:
                spans.append((closing, closing + 2))
            closing = text.find("}}", closing + 2)
    for start in stack:  # never closed: the line is lost, not the article
        line_end = text.find("\n", start)
        spans.append((start, len(text) if line_end < 0 else line_end))
    if stack:
        spans.sort()
    pieces = []
    position = 0
    for start, end in spans:
        if end <= position:
            continue
        pieces.append(text[position : max(start, position)])
        if start >= position and end - start < 4000 and text[end - 2 : end] == "}}":
            name = _template_name(text, start + 2, end - 2)
            words = TEMPLATE_TEXT.get(name)
            if words is None and name[:5] == "lang-":
                words = TEMPLATE_TEXT["lang-"]
            elif words is None and name[:10] == "formatnum:" and "{" not in name:
                pieces.append(name[10:].strip())
            if words is not None and depth < 4:
                pieces.append(words(_template_arguments(text[start + 2 : end - 2], depth)))
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _template_name(text: str, start: int, end: int) -> str:
    bar = text.find("|", start, min(end, start + 40))
    return text[start : bar if bar >= 0 else min(end, start + 40)].strip().lower()


def _template_arguments(body: str, depth: int) -> list[str]:
    """Return a template's name and positional arguments."""
    if "{{" in body:
        body = without_templates(body, depth + 1)
    if "[[" in body:
        body = _link_text(body)
    return [
        argument.strip()
        for argument in body.split("|")
        if "=" not in argument or argument.lstrip().startswith(_KEPT_ARGUMENTS)
    ]


def _without_tables(text: str) -> str:
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
    before = position - 1
    while before >= 0 and text[before] in " \t:*#" and position - before < 20:
        before -= 1
    return before < 0 or text[before] == "\n"


# --------------------------------------------------------------------------------------------
# Links
# --------------------------------------------------------------------------------------------


def _link_text(text: str) -> str:
    """Replace ``[[target|label]]`` by what a reader sees; files, categories, languages vanish."""
    text = "".join(_PLAIN_LINK.split(text))
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
                out.append(_one_link(inner))
            position = closing + 2
            closing = text.find("]]", position)
            if 0 <= opening < position:
                opening = text.find("[[", position)
    out.append(text[position:])
    # Never closed: keep the text, drop the brackets.
    levels = [*stack, out]
    for level in levels[1:]:
        if level and _file_prefix(level[0]):
            level[0] = level[0].partition("\n")[2]
    return "".join(piece for level in levels for piece in level)


def _one_link(inner: str) -> str:
    target, bar, label = inner.partition("|")
    if ":" in target:
        target = target.strip()
        if target.startswith(":"):
            target = target[1:]
        elif _file_prefix(target):
            return ""
        else:
            prefix = target[: target.index(":")].strip().lower()
            if not bar and (prefix in _OTHER_NAMESPACES or _LANGUAGE_CODE.fullmatch(prefix)):
                return ""
    if not bar:
        return target
    if not label.strip():
        return target.partition("(")[0].rstrip()  # the "pipe trick"
    return label


def _file_prefix(target: str) -> bool:
    colon = target.find(":", 0, 30)
    return colon > 0 and target[:colon].strip().lower() in _FILE_NAMESPACES
