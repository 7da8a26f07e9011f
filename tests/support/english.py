"""Texts that people read, and the phrases that ``docs/terms.md`` rules out in them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

# What is counted, and what it is counted per.
_UNITS = (
    r"answers?|bytes?|documents?|examples?|GB|GiB|hashes|lines?|MB|MiB|ms|numbers?|objects?|once|"
    r"operations?|pairs?|passes|pieces?|positions?|processes|ranks?|rows?|s|samples?|seconds?|"
    r"sentences?|shards?|steps?|tasks?|texts?|TFLOP/s|times?|tokens?|updates?|words?"
)
_PER = (
    "day|device|document|epoch|file|GPU|hour|line|mask|minute|month|node|pass|process|rank|row|"
    "sample|second|sequence|shard|step|task|token|word"
)
RATE = re.compile(rf"\b(?:{_UNITS})\s+an?\s+(?:{_PER})\b", re.IGNORECASE)
"""A rate with "a" instead of "per", such as ``rows a step``."""
PERCENT = re.compile(r"\d\s+%(?!\d)")
"""A number with a space before its percent sign."""

ALLOWED = {
    # Sentences of the demo's training text; another wording would be another corpus.
    ("bertds/pipeline/facts.py", "lies"),
}
"""Uses of a phrase that are right: the file, and the phrase in lower case."""


class Text(NamedTuple):
    """One text that people read."""

    line: int
    kind: str
    """prose, string, docstring or comment."""
    text: str


class Mark(NamedTuple):
    """One phrase that should not be there."""

    file: str
    line: int
    phrase: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.phrase!r} (see docs/terms.md)"


@cache
def ruled_out(repository: Path) -> re.Pattern[str]:
    """Return what ``docs/terms.md`` lists under Avoid, as whole words in any case."""
    page = (repository / "docs/terms.md").read_text(encoding="utf-8")
    table = page.split("## Avoid")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    phrases = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    any_of = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-])", re.IGNORECASE)


def markdown_texts(source: str) -> Iterator[Text]:
    """Yield the paragraphs of a page, without code, links' targets and the names of tests."""
    inside, begun, lines = False, 1, []
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        if inside or fence or not line.strip():
            if lines:
                yield Text(begun, "prose", "\n".join(lines))
            lines = []
            inside = inside != fence
            continue
        begun = begun if lines else number
        line = re.sub(r"`[^`]*`", " ", line)
        lines.append(re.sub(r"\]\([^)]*\)", "]", line).strip())


def python_texts(source: str) -> Iterator[Text]:
    """Yield the strings, docstrings and comments of a module; values in f-strings are left out."""
    tree = ast.parse(source)
    # A string that is a statement of its own: a docstring, or the text under a field.
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            values = [v.value if isinstance(v, ast.Constant) else " - " for v in node.values]
            yield Text(node.lineno, "string", "".join(map(str, values)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                yield Text(node.lineno, "docstring", _without_names(node.value))
            elif " " in node.value:  # otherwise it is a name
                yield Text(node.lineno, "string", node.value)
    comments: list[Text] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#")
            if comments and comments[-1].line + comments[-1].text.count("\n") + 1 == token.start[0]:
                last = comments.pop()
                comments.append(last._replace(text=f"{last.text}\n{text}"))
            else:
                comments.append(Text(token.start[0], "comment", text))
    yield from comments


def _without_names(docstring: str) -> str:
    """Return a docstring without code and without the names of arguments."""
    prose = re.sub(r"``[^`]*``|`[^`]*`", " ", docstring)
    return re.sub(r"^(\s+)\w+:", r"\1", prose, flags=re.MULTILINE)


def other_texts(source: str) -> Iterator[Text]:
    """Yield the comments of a YAML file or a shell script, and the text of an HTML template."""
    for number, line in enumerate(source.splitlines(), start=1):
        comment = re.search(r"(?:^|\s)#\s(.*)", line)
        if comment:
            yield Text(number, "comment", comment[1])
        elif line.lstrip().startswith("<"):
            yield Text(number, "prose", re.sub(r"<[^>]*>|\{[%{#].*?[%}#]\}", " ", line))


def texts(path: Path) -> Iterator[Text]:
    """Yield the texts of one file, by its kind."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return markdown_texts(source)
    return python_texts(source) if path.suffix == ".py" else other_texts(source)


def marks(path: Path, repository: Path) -> list[Mark]:
    """Return the phrases of one file that are ruled out."""
    name = str(path.relative_to(repository))
    found = []
    for text in texts(path):
        for pattern in (ruled_out(repository), RATE, PERCENT):
            for hit in pattern.finditer(text.text):
                phrase = " ".join(hit[0].lower().split())
                line = text.line + text.text.count("\n", 0, hit.start())
                if (name, phrase) not in ALLOWED:
                    found.append(Mark(name, line, phrase))
    return found
