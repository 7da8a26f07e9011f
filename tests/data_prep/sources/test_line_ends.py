"""Lines end with LF, CR LF or CR, in every reader of text."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.clean import line_feeds
from data_prep.document import Document, Unit
from data_prep.sources import READERS
from data_prep.sources.charsets import detect
from data_prep.sources.extracted import doc_document
from data_prep.sources.records import json_document
from tests.support.read_sources import read

ENDS = {"CR LF": "\r\n", "CR": "\r", "CR CR LF": "\r\r\n"}
PACKERS = {
    "plain": str.encode,
    "gz": lambda text: gzip.compress(text.encode()),
    "utf-16": lambda text: text.encode("utf-16"),
    "marked": lambda text: text.encode("utf-8-sig"),
}


def texts(path: Path, layout: str, size: int) -> list[str]:
    """Read a plain file in units of ``size`` bytes."""
    end = path.stat().st_size
    found: list[Document] = []
    for number, start in enumerate(range(0, end, size)):
        last = min(end, start + size)
        unit = Unit("text", "text", str(path), number, start, last, last - start, (layout,))
        found += READERS["text"](unit)
    return [document.text for document in found]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["text", "books"])
def test_all_line_ends_give_the_documents_of_line_feeds(
    tmp_path: Path, made: SimpleNamespace, kind: str, end: str, packing: str
) -> None:
    rng = random.Random(2)
    text = "\n\n".join(made.article(rng, 2).replace("\n\n", "\n") for _ in range(20)) + "\n"
    path = tmp_path / "t.txt"
    path.write_text(text)
    expected = read(kind, path)
    assert len(expected) == (20 if kind == "text" else 1)
    assert all("\n" in document.text for document in expected)
    path.write_bytes(PACKERS[packing](text.replace("\n", ENDS[end])))
    assert read(kind, path) == expected


@pytest.mark.parametrize("seed", range(30))
def test_units_cut_anywhere_give_each_document_once(tmp_path: Path, seed: int) -> None:
    """Also inside the end of a line, and with several kinds of ends in one file."""
    rng = random.Random(seed)
    path = tmp_path / "t.txt"
    ends = ["\n", "\r\n", "\r", "\r\r\n"] if seed % 5 == 4 else [["\n", *ENDS.values()][seed % 5]]
    lines = [rng.choice(["", "", "a", "b c", " "]) for _ in range(rng.randint(1, 12))]
    text = "".join(line + rng.choice(ends) for line in lines) + rng.choice(["", "end"])
    path.write_text(text, newline="")
    feeds = re.sub("\r+\n|\r", "\n", text)
    by_line = [line.strip() for line in feeds.removesuffix("\n").split("\n")]
    blocks = re.split(r"\n(?:[ ]*\n)+", f"\n\n{feeds}\n\n")
    by_blank_line = [
        "\n".join(line.strip() for line in block.split("\n")) for block in blocks if block.strip()
    ]
    for size in (1, 2, 3, 5, 1000):
        assert texts(path, "line", size) == by_line
        assert texts(path, "blank-line", size) == by_blank_line


@pytest.mark.parametrize("blank", ["\xa0", "\u3000", " \u2003\xa0 ", "\t", "\f", "\ufeff"])
def test_a_line_of_spaces_of_any_width_is_blank(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "t.txt"
    documents = ["“One” text.", " Of two\nlines.", "\u3000三。", "é\n\ufefflast"]
    path.write_text(f"\n{blank}\n".join(documents))
    found = [document.text for document in read("text", path)]
    assert found[:3] == ["“One” text.", "Of two\nlines.", "三。"]
    assert len(found) == 4 and found[3].endswith("last")


@pytest.mark.parametrize("blank", ["", "\xa0", " \t", "\f", "\u3000"])
def test_such_a_line_also_separates_the_paragraphs_of_a_book(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(f"The first\nparagraph.\n{blank}\nThe second paragraph.\n")
    assert [d.text for d in read("books", path)] == ["The first paragraph.\nThe second paragraph."]


def test_a_carriage_return_between_the_values_of_a_json_line_does_not_end_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"id": 1,\r "text": "One text."}\r\n{"text": "Another."}\n')
    assert [document.text for document in read("jsonl", path)] == ["One text.", "Another."]


def test_paragraphs_of_records_articles_and_pages_end_at_any_line_end(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    # Longer than the title of a section.
    paragraphs = [f"Paragraph {n} is a sentence of more than eight words." for n in (1, 2)]
    body = "\n".join(["Title", "", *paragraphs])
    for end in ("\n", *ENDS.values()):
        text = body.replace("\n", end)
        line = json.dumps({"text": text}).encode()
        assert json_document(line, "text").text.split("\n") == ["Title", *paragraphs]
        article = f'<doc id="1" title="Title">{end}{text}{end}</doc>'.encode()
        assert doc_document(article).text == "\n".join(paragraphs)
        page = "'''It''' is an article.\n\n== See also ==\n* [[List]]\n\n== Life ==\nMore of it."
        path = tmp_path / "w.xml"
        path.write_bytes(made.dump([made.page("It", page)]).replace(b"\n", end.encode()))
        assert [d.text for d in read("wiki", path)] == ["It is an article.\nMore of it."]


def test_an_old_mac_book_is_read_in_the_encoding_that_its_header_names() -> None:
    book = "Title: Café\nCharacter set encoding: mac_roman\n\nUn café près de l’été.\n"
    assert detect(book.replace("\n", "\r").encode("mac_roman")) == "mac-roman"


def test_text_without_carriage_returns_is_not_copied() -> None:
    text = "a\nb"
    assert line_feeds(text) is text
