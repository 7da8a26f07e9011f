"""The text of PNG charts is readable in every script, whatever fonts are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.display import fonts
from bertds.display.fonts import OWN, Fonts
from bertds.display.words import cells, shorten
from bertds.report.write import write_report
from bertds.system.logs import log
from tests.support.made_runs import make_run, train_line


class Label:
    """What ``Fonts`` uses of a matplotlib text."""

    def __init__(self, text: str) -> None:
        self.text, self.families = text, [""]

    def get_text(self) -> str:
        return self.text

    def set_text(self, text: str) -> None:
        self.text = text

    def set_fontfamily(self, families: list[str]) -> None:
        self.families = families


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fonts by name with the letters that they have, besides matplotlib's own."""
    found = {"Serif JP": "日本語", "Sans KR": "한국어"}
    own = fonts.has_glyph

    def has(family: str, letter: str) -> bool:
        return letter in found[family] if family in found else own(family, letter)

    monkeypatch.setattr(fonts, "installed_families", lambda: tuple(found))
    monkeypatch.setattr(fonts, "has_glyph", has)
    return found


def applied(found: Fonts, *names: str) -> list[str]:
    labels = [Label(name) for name in names]
    found.apply(labels)  # type: ignore[arg-type]
    assert all(label.families == found.families for label in labels)
    return [label.text for label in labels]


def test_only_fonts_that_are_needed_are_added(installed: dict[str, str]) -> None:
    found = Fonts()
    assert applied(found, "large", "Größe é Я 5,000") == ["large", "Größe é Я 5,000"]
    assert found.families == [OWN]
    assert applied(found, "large", "日本語 base") == ["large", "日本語 base"]
    assert found.families == [OWN, "Serif JP"] and found.advice() == ""


def test_letters_without_a_font_are_numbered_and_named_once(installed: dict[str, str]) -> None:
    found = Fonts()
    assert applied(found, "runs/中文b", "हिन्दी", "한국어") == ["runs/[1]b", "[2]", "한국어"]
    assert applied(found, "x", "हिन्दी", "中文 large") == ["x", "[2]", "[1] large"]
    assert found.unshown == {"中文": "[1]", "हिन्दी": "[2]"}
    assert "[1] is 中文, [2] is हिन्दी" in found.advice()
    assert "apt-get install fonts-noto-cjk" in found.advice()


@pytest.mark.filterwarnings("error")
def test_a_report_names_its_runs_and_says_once_what_to_install(
    installed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: warnings.append(text % values))
    installed.clear()
    runs = [make_run(tmp_path / name, [train_line(s) for s in (10, 20)]) for name in ("日本", "b")]
    write_report(runs, tmp_path / "report")
    assert [text.count("日本") for text in warnings] == [1]
    # Its page is read with the fonts of the reader's system.
    assert "日本" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    write_report(runs[1:], tmp_path / "other")
    assert len(warnings) == 1


def test_installed_fonts_are_found_without_those_that_draw_boxes() -> None:
    names = fonts.installed_families()
    assert not any("Last Resort" in name for name in names)
    # It is matplotlib's own even where no font is installed.
    assert fonts.has_glyph(OWN, "é") and not fonts.has_glyph(OWN, "中")
    assert not fonts.has_glyph("No such font", "é")
    for name in names[:3]:
        assert any(fonts.has_glyph(name, letter) for letter in "aア中한∑0")


def test_wide_letters_count_twice() -> None:
    assert (cells("abc"), cells("日本a"), cells("ｱ é")) == (3, 5, 3)
    assert shorten("日本", 4, 2) == "日本"
    assert shorten("日" * 20, 13, 5) == "日日…日日日"
    assert shorten("abcdefgh", 6, 2) == "ab…fgh"
