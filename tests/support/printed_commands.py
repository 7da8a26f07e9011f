"""The commands that the pages print, and the parsers of the programs that they start."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bertds.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
SCRIPTS = {"bertds/train.py": "train", "data_prep/build_wiki_books.py": "prep"}


@dataclass(frozen=True, slots=True)
class Line:
    """One command of a page."""

    page: str
    number: int
    words: tuple[str, ...]
    in_table: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.number} {' '.join(self.words[:4])}"

    @property
    def names_an_option(self) -> bool:
        """A table's command such as ``bertds prep --hf``, which is not complete."""
        return self.in_table and len(self.words) <= 4


def commands(page: Path) -> list[Line]:
    """Every command in a page's ```bash blocks, continuation lines joined, and in its tables."""
    found, inside, begun, text, document = [], False, 0, "", ""
    name = str(page.relative_to(ROOT))
    for number, raw in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if line.startswith("```"):
            inside = line in ("```bash", "```sh") and not inside
            continue
        if not inside:
            # A command in a table has arguments; `bertds plan` alone is a name.
            for cell in re.findall(r"`(bertds [^`]+ --[^`]+)`", line) if line[:1] == "|" else ():
                found += [Line(name, number, words, in_table=True) for words in split(cell)]
            continue
        if document:  # a here-document's lines are no commands
            document = "" if line == document else document
            continue
        begun = begun if text else number
        text += line.removesuffix("\\") + " "
        if line.endswith("\\"):
            continue
        here = re.search(r"<<-?\s*'?(\w+)'?", text)
        document = here.group(1) if here else ""
        found += [Line(name, begun, words) for words in split(text)]
        text = ""
    assert not text, f"{page}: a command ends in a backslash"
    return found


def split(text: str) -> list[tuple[str, ...]]:
    """Split a line into commands and words; environment settings in front are taken off."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            parts.append([])
        else:
            parts[-1].append(word)
    cut = []
    for part in parts:
        while part and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", part[0]):
            part = part[1:]
        if part:
            cut.append(tuple(part))
    return cut


LINES = [line for page in PAGES for line in commands(page)]


def ours(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Return (command of ``bertds``, its arguments) if a line is one of ours."""
    program, rest = words[0], list(words[1:])
    if program in ("bertds", ".venv/bin/bertds"):
        return (rest[0], rest[1:]) if rest and rest[0] in COMMANDS else ("", rest)
    for place, word in enumerate(words):
        name = next((c for s, c in SCRIPTS.items() if word.endswith(s)), None)
        if name and program in ("deepspeed", "python", "python3", "torchrun", "srun"):
            return name, list(words[place + 1 :])
    return None


def in_job(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Return (command, arguments) of what a batch script of ours starts, as ``slurm/*.sh`` do."""
    place = next((n for n, word in enumerate(words) if re.match(r"slurm/\w+\.sh$", word)), None)
    if place is None:
        return None
    script, rest = Path(words[place]).stem, list(words[place + 1 :])
    if script == "submit":
        return in_job(words[place + 1 :])
    if script in ("phase1", "phase2"):
        return "train", rest
    if script == "data_prep":
        return "prep", rest
    if script == "doctor":
        return "doctor", rest
    if script == "bertds":
        return rest[0], rest[1:]
    if script == "pipeline":  # its own options, and then preparation's without --out
        for option in ("--work", "--nodes", "--prep", "--train"):
            if option in rest:
                del rest[rest.index(option) : rest.index(option) + 2]
        return "prep", [*rest, "--out", "data"]
    return None


def parse(name: str, arguments: list[str]) -> None:
    """Read the arguments by the command's own parser, as the command does first.

    Raises:
        ConfigError: options that do not go together.
        SystemExit: argparse refused them, with code 2, or printed the help, with 0.
    """
    arguments = [word for word in arguments if word != "--debug"]  # of every command
    if "<<<" in arguments:
        arguments = arguments[: arguments.index("<<<")]
    if name == "prep":
        show = arguments[:1] == ["show"]
        module = import_module("data_prep.report.show_rows" if show else "data_prep.options")
        module.parse_args(arguments[1:] if show else arguments)
    else:
        import_module(COMMANDS[name][0]).parse_args(arguments)


class _Parsed(Exception):
    """The arguments were accepted; the script goes no further."""


def parse_script(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the arguments of ``python SCRIPT ...`` by the script's parser, and stop there.

    Raises:
        SystemExit: the parser refused them.
    """
    place = next(n for n, word in enumerate(words) if word.endswith(".py"))
    script = ROOT / words[place]
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        original(self, *args, **kwargs)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [str(script), *words[place + 1 :]])
        patch.syspath_prepend(str(script.parent))  # as Python does for a script
        with pytest.raises(_Parsed):
            runpy.run_path(str(script), run_name="__main__")
