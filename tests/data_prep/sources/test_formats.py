from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bertds.errors import DataError
from data_prep.sources import READERS, file_units, find_files, source_file
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.formats import wrapping
from tests.support.read_sources import OPTIONS, read

TEXT = "Document one tells of a river. It runs to the sea.\n\nDocument two is här, straße, 東京.\n"


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def skippable(data: bytes) -> bytes:
    """As pzstd writes it: a skippable frame, a frame, a skippable frame, a frame."""
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    half = len(data) // 2
    return frame + zstd(data[:half]) + frame + zstd(data[half:])


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": zstd,
    "zst-skippable": skippable,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "utf-16-be": lambda data: data.decode().encode("utf-16-be"),
    "utf-16-le": lambda data: data.decode().encode("utf-16-le"),
    "utf-32": lambda data: data.decode().encode("utf-32"),
    "utf-32-be": lambda data: data.decode().encode("utf-32-be"),
    "gz-utf-16": lambda data: gzip.compress(data.decode().encode("utf-16")),
    "bom": lambda data: b"\xef\xbb\xbf" + data,
    "gz-bom": lambda data: gzip.compress(b"\xef\xbb\xbf" + data),
}


@pytest.mark.parametrize("packing", PACKERS)
def test_every_wrapping_is_undone_whatever_the_name(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(PACKERS[packing](TEXT.encode()))
    assert [d.text for d in read("text", path)] == TEXT.strip().split("\n\n")
    (book,) = read("books", path)
    assert book.text.startswith("Document one")
    path.write_bytes(PACKERS[packing](json.dumps({"text": "One river."}).encode() + b"\n"))
    assert [d.text for d in read("jsonl", path)] == ["One river."]


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", TEXT)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("books/a.txt")
        member.size = len(TEXT.encode())
        tar.addfile(member, io.BytesIO(TEXT.encode()))
    data = buffer.getvalue()
    if kind == "tar-v7":  # before POSIX: no magic, and a checksum over what is left
        header = bytearray(data[:257] + bytes(255))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + data[512:]
    return data


HTML = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN">
<html lang="en">
<!-- made by hand --><HEAD><title>A book</title></HEAD>
<body><p>It runs to the sea.</p></body></html>
"""
NO_TEXT = {
    "a ZIP archive": lambda: archive("zip"),
    "a tar archive;": lambda: archive("tar"),
    "a tar archive; unpack": lambda: archive("tar-v7"),
    "a tar archive in gz data": lambda: gzip.compress(archive("tar")),
    "a tar archive in bz2 data": lambda: bz2.compress(archive("tar")),
    "a tar archive in xz data": lambda: lzma.compress(archive("tar")),
    "a ZIP archive .* in gz data": lambda: gzip.compress(archive("zip")),
    "gz data in gz data": lambda: gzip.compress(gzip.compress(TEXT.encode())),
    "a 7-Zip archive": lambda: b"7z\xbc\xaf\x27\x1c" + bytes(64),
    "LZ4 data": lambda: b"\x04\x22\x4d\x18" + bytes(range(64)),
    "LZ4 data; unpack": lambda: b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab\x04\x22\x4d\x18data",
    "a PDF file": lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a program": lambda: Path(sys.executable).read_bytes()[:5000],
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(64),
    "a Parquet file": lambda: b"PAR1" + bytes(64),
    "an HTML page;": lambda: HTML,
    "an HTML page; extract": lambda: b"\xef\xbb\xbf\r\n" + HTML.lower(),
    "an HTML page in gz data; extract": lambda: gzip.compress(HTML),
    "an HTML page; extract its": lambda: HTML.decode().encode("utf-16"),
    "an HTML page; extract its text": lambda: b'<?xml version="1.0"?>\n<!-- A -->' + HTML,
    "an HTML page; extract its text first": lambda: HTML.partition(b"\n")[2],
    "binary data of an unknown format": lambda: bytes(range(256)) * 20,
}


@pytest.mark.parametrize("what", NO_TEXT)
@pytest.mark.parametrize("kind", ["text", "books", "jsonl", "wiki", "pubmed"])
def test_a_format_that_is_not_text_is_refused_by_name(tmp_path: Path, what: str, kind: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(NO_TEXT[what]())
    with pytest.raises(DataError, match=rf"t\.txt: not text but {what}"):
        source_file(kind, path, path.name, OPTIONS.get(kind, ()))


@pytest.mark.parametrize(
    "text",
    [
        b"BZh is how every bzip2 file begins, this one does not.\n",
        b"PK is no archive. MZ is no program.\n",
        b"<html> is the first tag of a page, <head> the second.\n",
        b"Pages begin with <!DOCTYPE html>\n<html><head>, this one does not.\n",
        b"A form feed \x0c, an end mark \x1a and one stray \x00 are in old texts.\n"
        + b"Word " * 50,
        "Кириллица без подписи кодировки.".encode("koi8-r"),
        b"\x1b$BF|K\\8l\x1b(B in ISO-2022-JP",
    ],
)
def test_text_that_begins_like_something_else_is_text(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(text)
    assert wrapping(text) == ""
    assert b"".join(block for block, _ in whole_blocks(path)) == text
    source_file("text", path, path.name, ("line",))


RECORDS = [{"text": f"Document number {i} tells of a river."} for i in range(4)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (json.dumps(RECORDS), 1),
        (json.dumps(RECORDS, indent=1), 1),
        ("\n \n" + json.dumps(RECORDS), 1),
        (json.dumps(RECORDS[0], indent=1), 1),
        ('{"a": 1,\n"b": 2}\n', 2),
        ("5\n6\n", 1),
    ],
)
def test_json_that_is_not_lines_is_refused_by_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"t\.json: line {line} is .*jq -c"):
        read("jsonl", path)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_record_without_the_key_is_counted(tmp_path: Path, place: int) -> None:
    records = [{"content": "x"} if i == place else r for i, r in enumerate(RECORDS)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [i for i, d in enumerate(read("jsonl", path)) if d.dropped == "no_text_key"] == [place]
    path.write_text('{"content": "x"}\n' * 3)
    with pytest.raises(
        DataError, match=r"line 1: the record has no key 'text' \(it has: content\)"
    ):
        read("jsonl", path)


@pytest.mark.parametrize("kind", ["wiki", "jsonl"])
def test_folders_of_wikiextractor_json_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "AA").mkdir()
    body = 'A "B"\n\nIt is a city &amp; it has <br>a river.\n\nHistory.\n'
    record = {"id": "1", "url": "u", "title": "A &quot;B&quot;", "text": body}
    (tmp_path / "AA" / "wiki_00").write_text(json.dumps(record) + "\n")
    (tmp_path / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(json.dumps(record).encode()))
    files = find_files(kind, [str(tmp_path)], OPTIONS.get(kind, ()))
    assert [f.name for f in files] == ["AA/wiki_00", "AA/wiki_01.bz2"]
    if kind == "wiki":
        found = [d for f in files for u in file_units(f, 999) for d in READERS[u.reader](u)]
        assert [d.text for d in found] == ["It is a city & it has a river."] * 2
        assert found[0].title == 'A "B"'


def test_linked_folders_are_followed_once(tmp_path: Path, capsys) -> None:
    books, elsewhere = tmp_path / "books", tmp_path / "elsewhere"
    for folder in (books / "a", elsewhere):
        folder.mkdir(parents=True)
    (books / "a" / "1.txt").write_text("One.")
    (books / "a" / "scan.zip").write_bytes(archive("zip"))
    (elsewhere / "2.txt").write_text("Two.")
    os.symlink(elsewhere, books / "b")
    os.symlink(elsewhere, books / "c")
    os.symlink(books / "a", books / "0")  # below the folder already: keeps its own name
    os.symlink(books, elsewhere / "up")
    assert [f.name for f in find_files("books", [str(books)], ())] == ["a/1.txt", "b/2.txt"]
    assert "ignored by --books: 1 .zip" in capsys.readouterr().err
