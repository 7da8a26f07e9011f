from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest

from bertds.errors import DataError
from data_prep.document import Document, Unit
from data_prep.sources import READERS, file_units, find_files, source_file
from data_prep.sources.books import book_text, decode
from data_prep.sources.extracted import doc_document


def read(
    kind: str, path: Path, options: tuple[str, ...] = (), unit_bytes: int = 1 << 20
) -> list[Document]:
    file = source_file(kind, path, path.name, options)
    return [d for unit in file_units(file, unit_bytes) for d in READERS[unit.reader](unit)]


BOOK = (
    "\ufeffThe Project Gutenberg EBook of A Tale\r\n\r\nProduced by A. Person\r\n\r\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\r\n\r\nCHAPTER I.\r\n\r\n"
    "The Beginning\r\n\r\nIt was the best of times, it was\r\nthe _worst_ of times.\r\n\r\n"
    "\r\n“Well,” said he,\r\n“so it was.”\r\n\r\n*       *       *\r\n\r\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***\r\n\r\nLicence text of many words.\r\n"
)


def test_a_book_loses_its_frame_and_hard_line_ends() -> None:
    assert book_text(decode(BOOK.encode())[0]).split("\n") == [
        "It was the best of times, it was the worst of times.",
        "“Well,” said he, “so it was.”",
    ]


@pytest.mark.parametrize(
    ("paragraph", "kept"),
    [
        ("CHAPTER 1. Loomings.", False),
        ("Chapter XI. Who Stole the Tarts?", False),
        ("Kapitel 3.", False),
        ("Глава I.", False),
        ("I. A Scandal in Bohemia\nII. The Red-headed League\nIII. A Case of Identity", False),
        (
            "Chapter I The Period\nChapter II The Mail\nChapter III The Night\n  a long name\n"
            "Chapter IV The Preparation",
            False,
        ),
        ("Part I was read aloud, he said.", True),
        ("CHAPTER 1. It was a long way to the sea, and he did not know how far it would be.", True),
        ("I. He goes.\nThe ship sails over the sea and\ncomes home at last.", True),
        ("1. It is good.\n2. It was good.\n3. It will be good.", True),
    ],
)
def test_numbered_headings_and_tables_of_contents_are_no_prose(paragraph: str, kept: bool) -> None:
    text = book_text(f"It was the best of times.\n\n{paragraph}\n\nIt was the worst of times.\n")
    assert text.count("\n") == (2 if kept else 1)


def test_a_soft_hyphen_at_the_end_of_a_line_joins_a_word() -> None:
    assert book_text("It is a hy\xad\n  phen, in a so\xadft line.\n\nEnd\xad\n\nIt is so.\n") == (
        "It is a hyphen, in a so\xadft line.\nIt is so."
    )


def test_a_book_in_latin1_or_utf16_is_read(tmp_path: Path) -> None:
    text = "The café was closed – she said so, and went home at once."
    assert decode(text.encode("cp1252")) == (text, "cp1252")
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        (tmp_path / "b.txt").write_bytes(text.encode(encoding))
        (document,) = read("books", tmp_path / "b.txt")
        assert (document.text, document.encoding) == (text, "")


def test_all_real_books_begin_and_end_with_the_story(shared_data: Path) -> None:
    files = find_files("books", [str(shared_data / "books")], ())
    assert len(files) == 13
    for file in files:
        (document,) = READERS["book"](next(file_units(file, 1 << 20)))
        assert len(document.text) > 100_000
        for word in ("Project Gutenberg", "*** ", "\r", "\ufeff", "  "):
            assert word not in document.text, (file.name, word)


DOC = """<doc id="12" url="https://x" title="Anarchism &amp; more">
Anarchism & more

Anarchism is a philosophy. It has many schools.
Career.
Later it changed, as things do, in many ways.

</doc>
"""


def test_an_extracted_document_loses_title_and_section_titles() -> None:
    assert doc_document(DOC.encode()).text.split("\n") == [
        "Anarchism is a philosophy. It has many schools.",
        "Later it changed, as things do, in many ways.",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('She was born in 1958 in Multan.<ref name="pap/2013"></ref>', "in 1958 in Multan."),
        ('It became flash memory.<ref name="78K0/Dx2">\nRenesas: \n</ref>', "became flash memory."),
        ("It was in [[Rome]].<ref>a</ref>", "It was in Rome."),
        ("It was so.<BR />", "It was so."),
        ("It rained.<ref>a</ref> It snowed.<ref>b</ref>", "It rained. It snowed."),
    ],
)
def test_a_short_sentence_with_a_reference_is_no_section_title(line: str, text: str) -> None:
    document = doc_document(DOC.replace("Career.", f"Career.\n{line}").encode())
    assert "Career" not in document.text
    paragraph = document.text.split("\n")[1]
    assert paragraph.endswith(text) and "<" not in paragraph and paragraph.isprintable()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("unit_bytes", [50, 1 << 20])
def test_extracted_files_in_any_wrapping(tmp_path: Path, pack, unit_bytes: int) -> None:
    title_only = '<doc id="1" url="" title="Gone">\nGone\n\n\n</doc>\n'
    bad = DOC.encode().replace(b"philosophy", b"philos\xffophy")
    path = tmp_path / "wiki_00"
    path.write_bytes(pack((DOC + title_only).encode() + bad))
    documents = read("wiki", path, unit_bytes=unit_bytes)
    assert [d.dropped for d in documents] == ["", "empty", "bad_utf8"]


def test_the_first_file_decides_the_reader_and_the_others_are_checked(tmp_path: Path) -> None:
    for name, text in (("a", DOC), ("b", DOC * 2), ("c", "no documents here")):
        (tmp_path / name).write_text(text)
    files = find_files("wiki", [str(tmp_path)], ())
    assert [f.reader for f in files] == ["extracted"] * 3
    counts = []
    for file in files[:2]:
        (unit,) = file_units(file, 1 << 20)
        counts.append(len(list(READERS[unit.reader](unit))))
    assert counts == [1, 2]
    with pytest.raises(DataError, match="c: contains no <doc id"):
        list(READERS["extracted"](next(file_units(files[2], 1 << 20))))


TEXT = "First line.\nSecond line of the first.\n\n \t\nSecond document.\n\n\n\nThird.\r\nMore.\r\n"


@pytest.mark.parametrize("unit_bytes", [1, 3, 7, 12, 20, 1 << 20])
def test_text_documents_however_the_file_is_cut(tmp_path: Path, unit_bytes: int) -> None:
    path = tmp_path / "t.txt"
    path.write_text(TEXT, newline="")
    found = [d.text for d in read("text", path, ("blank-line",), unit_bytes)]
    assert found == ["First line.\nSecond line of the first.", "Second document.", "Third.\nMore."]
    by_line = read("text", path, ("line",), unit_bytes)
    assert [d.text for d in by_line if d.text] == [
        "First line.",
        "Second line of the first.",
        "Second document.",
        "Third.",
        "More.",
    ]
    packed = tmp_path / "t.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [d.text for d in read("text", packed, ("blank-line",))] == found


def test_text_with_invalid_utf8_loses_that_document_only(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfGood one.\n\nBad \xff one.\n\nGood again.\n")
    assert [(d.text, d.dropped) for d in read("text", path, ("blank-line",))] == [
        ("Good one.", ""),
        ("", "bad_utf8"),
        ("Good again.", ""),
    ]


def lines(records: list[object]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    data = lines([{"body": "One & two."}, {"body": None}, {"body": 5}, {"body": "\ud800x y"}])
    data += b'not json\n\n"a string"\n' + b'{"body": "bad \xff"}\n'
    if suffix == ".gz":
        data = gzip.compress(data)
    if suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        data = pyarrow.compress(data, codec="zstd", asbytes=True)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data)
    found = read("jsonl", path, ("body",))
    assert [d.dropped for d in found] == [
        "",
        "empty",
        "malformed",
        "",
        "malformed",
        "malformed",
        "bad_utf8",
    ]
    assert [d.text for d in found if d.text] == ["One & two.", "\ufffdx y"]
    with pytest.raises(DataError, match=r"no key 'text'.*it has: body.*--text-key"):
        read("jsonl", path, ("text",))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"Document {i}." for i in range(10)], "id": list(range(10))})
    parquet.write_table(table, path, row_group_size=3)
    assert [d.text for d in read("parquet", path, ("text",))] == [
        f"Document {i}." for i in range(10)
    ]
    with pytest.raises(DataError, match="no column 'body'"):
        read("parquet", path, ("body",))
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a Parquet file"):
        read("parquet", tmp_path / "b.parquet", ("text",))
    # A column's name that is no UTF-8, at each of its places.
    (tmp_path / "b.parquet").write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
    with pytest.raises(DataError, match=r"not a Parquet file|damaged Parquet|no column"):
        read("parquet", tmp_path / "b.parquet", ("text",))


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["text", "text"], ["One.", "One."], "several columns 'text'"),
        (["text"], [b"One."], r"'text' is binary, not text \(string\); set --text-key"),
        (["text"], [["One."]], "'text' is list<.*>, not text"),
        (["text"], [5], "'text' is int64, not text"),
    ],
)
def test_a_parquet_column_that_is_not_text_is_refused(
    tmp_path: Path, names: list[str], values: list[object], message: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [[values[0]] for _ in names]
    parquet.write_table(pyarrow.table(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet: .*{message}"):
        read("parquet", tmp_path / "a.parquet", ("text",))


def test_text_columns_of_any_form_and_equal_titles_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    own = [
        pa.array(["One."]).dictionary_encode(),
        pa.array(["One."], pa.large_string()),
        pa.array(["One."]),
        pa.nulls(1),
    ]
    for text in own:
        table = pa.table([text, ["a"], ["b"]], names=["text", "title", "title"])
        parquet.write_table(table, tmp_path / "a.parquet")
        (found,) = read("parquet", tmp_path / "a.parquet", ("text",))
        assert found.text == ("" if text is own[-1] else "One.") and found.title == ""


def test_pubmed(tmp_path: Path, shared_data: Path) -> None:
    (path,) = (shared_data / "biomedical").rglob("6B1_abstracts.json.gz")
    documents = read("pubmed", path)
    assert documents[0].text.startswith("Replisome disassembly is the final step")
    assert "CUL-2LRR-1" in documents[0].text  # <sup> is gone, its content kept
    broken = tmp_path / "x.json"
    broken.write_text("[1, 2]")
    with pytest.raises(DataError, match="URL -> abstract"):
        read("pubmed", broken)


def test_missing_and_empty_paths_and_those_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_files("books", [str(tmp_path / "nothing")], ())
    with pytest.raises(DataError, match=r"no \.txt.*in this folder"):
        find_files("books", [str(tmp_path)], ())
    (tmp_path / "e.txt").touch()
    with pytest.raises(DataError, match="the file is empty"):
        find_files("text", [str(tmp_path / "e.txt")], ("line",))


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe\n\0", b"\0\0\xfe\xff"])
@pytest.mark.parametrize("kind", ["text", "books", "wiki", "pubmed"])
def test_a_lone_byte_order_mark_is_named(tmp_path: Path, kind: str, mark: bytes) -> None:
    path = tmp_path / "m"
    for data in (mark, gzip.compress(mark)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not text but a lone byte order mark"):
            find_files(kind, [str(path)], ("line",))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_truncated_compressed_text_is_refused(tmp_path: Path, pack) -> None:
    data = pack(b"".join(b"Line number %d of this text.\n" % i for i in range(9999)))
    path = tmp_path / "t"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="truncated"):
        read("text", path, ("line",))


def test_a_source_that_disappears_is_named(tmp_path: Path) -> None:
    unit = Unit("text", "text", str(tmp_path / "gone.txt"), 0, 0, 10, 10, ("line",))
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        list(READERS["text"](unit))
