from __future__ import annotations

import ast
import re
from pathlib import Path

import jinja2
import pytest

from bertds.display.html_page import Table, render
from bertds.display.theme import DARK, LIGHT
from tests.project.test_imports import read_sources

NOTHING = Table(["what", "MB"], [["a <b>", 3]], numbers=(1,))


def page(**changes: object) -> str:
    values = {
        "title": "A & B",
        "subtitle": "",
        "headline": [("1%", "a share")],
        "charts": [],
        "lengths_note": "",
        "sources": NOTHING,
        "files": NOTHING,
        "settings": NOTHING,
    }
    return render("preparation.html.j2", **{**values, **changes})


def test_text_stays_text_and_numbers_are_aligned() -> None:
    assert "<title>A &amp; B</title>" in page()
    assert '<tr><td>a &lt;b&gt;</td><td class="n">3</td></tr>' in page()


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="lengths_note"):
        render(
            "preparation.html.j2", title="", subtitle="", headline=[], charts=[], sources=NOTHING
        )


def test_every_colour_that_is_used_has_a_value_in_light_and_dark() -> None:
    style = page().split("<style>")[1].split("</style>")[0]
    used = set(re.findall(r"var\(--([^)]*)\)", style))
    assert used <= set(LIGHT.colours()) == set(DARK.colours())
    assert style.count(f"--ink:{LIGHT.ink}") == 1 and style.count(f"--ink:{DARK.ink}") == 2


def test_wide_tables_scroll_inside_themselves() -> None:
    assert re.search(r"\.card \{[^}]*overflow-x: auto", page())
    assert page().count("<table") == page().count('<div class="card"><table') == 3


def test_markup_is_in_templates_and_not_in_python(repository: Path) -> None:
    guilty = [
        f"{module}: {node.value[:60]!r}"
        for module, source in read_sources(repository).items()
        if not module.startswith("data_prep.wiki.")  # reads the markup of others
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"<(html|div|span|table|t[rdh]|svg|rect|style|script|h\d|p)[ >]", node.value)
    ]
    assert guilty == []
