from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from data_prep import progress
from data_prep.build_wiki_books import main


def test_a_log_gets_occasional_lines_with_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.Progress("tokenise", 100_000_000, "bytes") as bar:
        for _ in range(4):
            clock[0] += 10
            bar.add(20_000_000, 5000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenise: 40%, 2.0 MB/s, 500 documents/s, 30 s left",
        "tokenise: 80%, 2.0 MB/s, 500 documents/s, 10 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress("tokenise", 1000, "bytes") as bar:
        bar.add(500, 3)
    shown = screen.getvalue()
    assert re.search(r"tokenise.*100%.*MB/s.*documents/s.*0:00:00", shown)


def test_the_closing_table(
    tmp_path: Path, wiki_dump: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my out"
    assert (
        main(
            [
                "--wiki",
                str(wiki_dump),
                "--vocab",
                str(vocab),
                "--out",
                str(out),
                "--workers",
                "1",
                "--validation-fraction",
                "0.1",
                "--instances",
                "64:10",
            ]
        )
        == 0
    )
    told = capsys.readouterr().err
    for line in (
        "documents   72 read, 60 written",
        "dropped     1 empty, 1 in other namespaces, 10 redirects",
        r"train       54 documents, 925 sentences, 12,736 tokens in 1 shard$",
        r"rows 64     [\d,]+ in \d+ files",
        r"time        \d+\.\d s: \d+\.\d MB/s, \d+ documents/s",
        "look at     .*/my out/report.html, or: bertds prep show '.*/my out'$",
    ):
        assert re.search(f"^  {line}", told, re.MULTILINE), line


def test_the_work_goes_on_if_its_lines_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of a pipe has ended, or the disk of a log file is full."""

    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    progress.say("prepared")
    progress.summary({"documents": "1"})
