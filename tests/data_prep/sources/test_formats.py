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

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.document import Document
from data_prep.sources import READERS, file_units, find_files, source_file
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.charsets import detect
from data_prep.sources.formats import wide_encoding, wrapping
from data_prep.wiki.extract import clean_wikitext

TEXT = "Document one tells of a river. It runs to the sea.\n\nDocument two is här, straße, 東京.\n"
OPTIONS = {"text": ("blank-line",), "jsonl": ("text",), "parquet": ("text",)}


def read(kind: str, path: Path) -> list[Document]:
    file = source_file(kind, path, path.name, OPTIONS.get(kind, ()))
    return [d for unit in file_units(file, 1 << 20) for d in READERS[unit.reader](unit)]


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
    "binary data of an unknown format": lambda: bytes(range(256)) * 20,
}


@pytest.mark.parametrize("what", NO_TEXT)
@pytest.mark.parametrize("kind", ["text", "books", "jsonl", "wiki", "pubmed"])
def test_what_is_no_text_is_refused_by_its_own_name(tmp_path: Path, what: str, kind: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(NO_TEXT[what]())
    with pytest.raises(DataError, match=rf"t\.txt: not text but {what}"):
        source_file(kind, path, path.name, OPTIONS.get(kind, ()))


@pytest.mark.parametrize(
    "text",
    [
        b"BZh is how every bzip2 file begins, this one does not.\n",
        b"PK is no archive. MZ is no program.\n",
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


# --------------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------------

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


# --------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------
# Encodings
# --------------------------------------------------------------------------------------------

SPOKEN = {
    "en": "It cost £5, the rôle of the café was naïve – “so it was”, he said.",
    "fr": "Il était une fois une forêt très éloignée, où l'été, ça va déjà à l'âge.",
    "de": "Er möchte das schöne Haus, aber die Straße ist groß und über dem Fluß.",
    "es": "El niño comió en la montaña, ¿dónde está? Mañana será otro día según él.",
    "pt": "Todos os seres são livres, dotados de razão e de consciência, e não só.",
    "is": "Hver maður er frjáls og jafn öðrum að virðingu og réttindum. Það er þá.",
    "pl": "Zażółć gęślą jaźń, wszyscy ludzie są wolni i równi pod względem godności.",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní, nadáni rozumem a svědomím. Příliš žluť.",
    "hu": "Minden ember szabadon születik, egyenlő méltósága és joga: tükörfúrógép, őrült fű.",
    "tr": "Bütün insanlar hür, eşit doğarlar. Akıl ve vicdana sahiptirler, ığdır değil.",
    "lt": "Visi žmonės gimsta laisvi ir lygūs savo orumu. Jiems suteiktas protas ir sąžinė.",
    "ru": "В начале июля, в чрезвычайно жаркое время, под вечер, один молодой человек вышел.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах, їх розум.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "zh": "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
    "zh-tw": "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


HEBREW = "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם. ".encode("cp1255") * 5
ENCODINGS = {
    "en": ("cp1252", "latin-1"),
    "fr": ("cp1252",),
    "de": ("latin-1",),
    "es": ("cp1252",),
    "pt": ("cp1252",),
    "is": ("cp1252",),
    "pl": ("cp1250", "iso8859-2"),
    "cs": ("cp1250", "iso8859-2"),
    "hu": ("cp1250",),
    "tr": ("cp1254",),
    "lt": ("cp1257",),
    "ru": ("cp1251", "koi8-r", "iso8859-5", "cp866"),
    "uk": ("cp1251",),
    "el": ("cp1253",),
    "ar": ("cp1256",),
    "zh": ("gb18030",),
    "zh-tw": ("big5",),
    "ja": ("shift_jis", "euc_jp"),
    "ko": ("euc_kr",),
}


@pytest.mark.parametrize(
    ("language", "encoding"), [(one, e) for one, encodings in ENCODINGS.items() for e in encodings]
)
def test_the_encoding_of_a_book_is_detected(language: str, encoding: str) -> None:
    data = (SPOKEN[language] + "\n").encode(encoding, "ignore") * 8
    assert data.decode(detect(data)) == data.decode(encoding)


def test_what_is_undecided_is_not_decoded() -> None:
    assert detect(HEBREW) == ""  # it might as well be Cyrillic
    declared = b"Title: X\r\nCharacter set encoding: windows-1255\r\n\r\n" + HEBREW
    assert detect(declared) == "cp1255"
    # What says Latin-1 is often Windows-1252.
    assert detect(b"Character set encoding: ISO-8859-1\n\n\x93Well\x94, na\xefve") == "cp1252"
    assert detect(b"Character set encoding: ASCII\n\nstra\xdfe gr\xfcn") == "cp1252"


@pytest.mark.parametrize("language", [*SPOKEN, "th", "hi", "he", "ka"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_read(tmp_path: Path, language: str, encoding: str) -> None:
    more = {
        "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย และเป็นเมืองที่มีประชากรมากที่สุด",
        "hi": "दिल्ली भारत की राजधानी है। यह एक पुराना और बड़ा शहर है, जहाँ बहुत लोग रहते हैं।",
        "he": HEBREW.decode("cp1255").strip(),
        "ka": "თბილისი საქართველოს დედაქალაქია, და აქ ბევრი ადამიანი ცხოვრობს.",
    }
    text = f"{SPOKEN.get(language) or more[language]} «X» 1984\n"
    path = tmp_path / "a.txt"
    path.write_bytes((text * 60).encode(encoding))
    for kind in ("text", "books"):
        found = "".join(d.text for d in read(kind, path))
        assert "".join(found.split()) == "".join((text * 60).split())
    path.write_bytes(text.encode(encoding))  # one line
    assert [d.text for d in read("text", path)] == [text.strip()]


def test_numbers_and_other_encodings_are_not_taken_for_utf16() -> None:
    rng = np.random.default_rng(0)
    for made in (
        rng.integers(0, 30_000, 2048).astype("<u2").tobytes(),
        rng.integers(0, 256, 4096).astype("u1").tobytes(),
        rng.integers(0, 50, 2048).astype("<u2").tobytes(),
        rng.normal(size=1024).astype("<f4").tobytes(),
        np.arange(0x4E00, 0x5600, dtype="<u2").tobytes() + b"\x01\x00",
        b"some text\0with zeros " * 100,
        ("话说天下大势，分久必合。\n" * 50).encode("gb18030") + b"\0",
    ):
        assert wide_encoding(made[:4096]) == ""


# --------------------------------------------------------------------------------------------
# Project Gutenberg
# --------------------------------------------------------------------------------------------

STORY = "It was the best of times in the little town by the river, and all said so.\n"
PRINT = "PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK, yes, all of it, at once.\n"
FRAMES = {
    "footer licence": "{story}\n*** START: FULL LICENSE ***\n\n{print}\n"
    "*END THE SMALL PRINT! X*END*\n",
    "footer small print": "{story}\n***START**THE SMALL PRINT!**X***\n\n{print}\n"
    "*END*THE SMALL PRINT!\n",
    "only the end of it": "{story}\nEnd of Project Gutenberg's X\n\n{print}\n"
    "*END*THE SMALL PRINT!\n",
    "header small print": "Project Gutenberg's X\n\n***START**THE SMALL PRINT!**X***\n\n{print}\n"
    "*END*THE SMALL PRINT! FOR X\n\n{story}",
    "header, only its end": "{print}\n*END*THE SMALL PRINT! FOR X\n\n{story}",
    "header notice": "This header should be the first thing seen when anyone opens it. Do not "
    "change it.\n\n{story}",
}


@pytest.mark.parametrize("frame", FRAMES)
def test_small_print_goes_wherever_it_is(tmp_path: Path, frame: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(FRAMES[frame].format(story=STORY * 3, print=PRINT))
    (document,) = read("books", path)
    assert document.text == (STORY * 3).replace("\n", " ").strip()


def test_markers_hold_only_where_they_may_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    begin, end = (
        "*** START OF THE PROJECT GUTENBERG EBOOK {} ***",
        "*** END OF THE PROJECT GUTENBERG",
    )
    long = "\n".join(f"{STORY}Chapter {i} ended so.\n" for i in range(500))
    assert len(long) > 40_000
    # Two books in one file, each in its frame.
    two = [f"{begin.format(n)}\n\nBook {n}. {STORY}\n{end} EBOOK\n\n{PRINT}" for n in (1, 2)]
    path.write_text("\n".join(two))
    (document,) = read("books", path)
    assert document.text.count("best of times") == 2
    assert "DISTRIBUTE" not in document.text
    # A line in the midst of a long book that says where a part ends.
    path.write_text(f"{begin.format(1)}\n\n{STORY}\nEnd of Project Gutenberg's part 1\n\n{long}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 500
    # A start marker after the story.
    path.write_text(f"{long}\n{begin.format(1)}\n\n{PRINT}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 500
    assert "DISTRIBUTE" not in document.text


@pytest.mark.parametrize("indent", ["", "   "])
def test_the_last_end_marker_counts_in_a_short_book_too(tmp_path: Path, indent: str) -> None:
    path = tmp_path / "a.txt"
    begin = f"{indent}*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
    end = f"{indent}*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\n{PRINT}"
    story = "\n".join(f"{STORY}Chapter {i} ended so.\n" for i in range(20))
    quoted = "End of Project Gutenberg's first part, as the printer had it.\n\n"
    for before_end in ("", f"{indent}End of the Project Gutenberg EBook of X, by Y\n\n\n"):
        path.write_text(f"{begin}{story}\n{quoted}{story}\n{before_end}{end}")
        (document,) = read("books", path)
        assert document.text.count("Chapter") == 40
        assert "DISTRIBUTE" not in document.text and "EBook" not in document.text
    # A licence that ends with the marker again.
    path.write_text(
        f"{begin}{story}{end}\nUpdated editions will replace the previous one.\n{PRINT * 20}\n{end}"
    )
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 20 and "DISTRIBUTE" not in document.text
    path.write_text(f"{story}\nEnde dieses Projekt Gutenberg Etextes X\n\n{PRINT}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 20 and "DISTRIBUTE" not in document.text


# --------------------------------------------------------------------------------------------
# Markup
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "body", "text"),
    [
        ('title=""Weird Al" Y"', '"Weird Al" Y\n\n{}', ""),
        ('title="&quot;H&quot; (x)"', '"H" (x)\n\n{}', ""),
        ('title="A" url="u"', "A\n\n{}", ""),
        ('title="R&amp;D"', "R&amp;D\n\nIt &lt;b&gt;is&lt;/b&gt; so.{}", "It is so."),
        (
            'title="P"',
            'P\n\nIt <br>has <templatestyles src="x"/>a <i>name</i>.{}',
            "It has a name.",
        ),
        ('title="P"', "P\n\nThe x<ref>Smith\n2001</ref> is <!-- no\n -->here.{}", "The x is here."),
        ('title="P"', "P\n\nA <b and c> d, and CD4<CD8.{}", "A <b and c> d, and CD4<CD8."),
        (
            'url="https://fr.wikipedia.org/wiki?curid=1" title="P"',
            "P\n\nL'[[a|art]] ({{japonais|do|道}}) du {{s|XX}} '''est''' &amp; reste.{}\n"
            "[[Catégorie:X]]\n{{Infobox\n| a = b\n}}\n{|\n| c\n|}",
            "L'art (do (道)) du XXe siècle est & reste.",
        ),
        (
            'title="P"',
            "P\n\n'''!!!''' is ( {{x}}) &lt;nowiki>[[a]]&lt;/nowiki> here.{}",
            "!!! is [[a]] here.",
        ),
        ('title="東京"', "東京\n\n東京は首都である。{}\n\n歴史.\n", "東京は首都である。"),
    ],
)
def test_extracted_articles_are_cleaned_like_a_dump(
    tmp_path: Path, head: str, body: str, text: str
) -> None:
    more = " It has two sentences, of which this one is long enough not to be a title."
    path = tmp_path / "wiki_00"
    body = body.replace("{}", more)
    path.write_text(f'<doc id="1" {head}>\n{body}\n</doc>\n')
    assert [d.text for d in read("wiki", path)] == [(text + more).strip()]


def test_wikiextractors_files_under_jsonl(tmp_path: Path) -> None:
    record = {"id": "1", "url": "https://de.wikipedia.org/wiki?curid=1", "title": "T"}
    text = "T\n\nEin {{lang|la|verbum}} &amp; [[a|Wort]], von dem hier noch mehr steht."
    path = tmp_path / "wiki_00"
    path.write_text(json.dumps({**record, "text": text}) + "\n")
    shown = "Ein verbum & Wort, von dem hier noch mehr steht."
    for kind in ("jsonl", "wiki"):
        assert [d.text for d in read(kind, path)] == [shown]
    # Records of another kind are text, whatever their file is called.
    path.write_text('{"text": "It is [[text]] &amp; no markup."}\n')
    assert [d.text for d in read("jsonl", path)] == ["It is [[text]] &amp; no markup."]
    path.write_text('<doc id="1" title="T">\nT\n\nText.\n</doc>\n')
    with pytest.raises(DataError, match=r"extracted articles .* use --wiki for it"):
        read("jsonl", path)
    path.write_text("<mediawiki></mediawiki>")
    with pytest.raises(DataError, match=r"a MediaWiki dump, .* use --wiki for it"):
        read("jsonl", path)


def test_comparisons_stay_in_abstracts(tmp_path: Path) -> None:
    kept = [
        "Adults aged >or=65 with BMI <or=30 kg/m2 and p<or=0.05, HbA1c >or=7%.",
        "The count was CD4<CD8 but in controls it was CD8>CD4.",
        "We had a <b and c> d, see <http://x.org/> and <me@x.org>.",
    ]
    tagged = 'CUL-2<sup>LRR-1</sup> <i class="x">in</i> vivo &alpha;&#946;, p &lt; 0.05'
    path = tmp_path / "p.json"
    path.write_text(json.dumps({str(i): text for i, text in enumerate([*kept, tagged])}))
    found = [d.text for d in read("pubmed", path)]
    assert found == [*kept, "CUL-2LRR-1 in vivo αβ, p < 0.05"]


def test_comparisons_stay_in_a_dump() -> None:
    kept = "The count was CD4<CD8 but in controls it was CD8>CD4, and it was <or= 5 as expected."
    assert clean_wikitext(kept) == kept
    tagged = "The <span id=x>count</span> was<ref>Smith</ref> high &amp; <u>so</u> it was expected."
    assert clean_wikitext(tagged) == "The count was high & so it was expected."


@pytest.mark.parametrize("kind", ["text", "jsonl", "books"])
def test_entities_are_text_where_there_is_no_markup(tmp_path: Path, kind: str) -> None:
    text = "See http://x.org/?a=1&region=us&copy=2&lt=5 for R&D; &lt;b&gt; is &amp;lt; here."
    path = tmp_path / "t.txt"
    path.write_text(json.dumps({"text": text}) if kind == "jsonl" else text)
    assert [d.text for d in read(kind, path)] == [text]


def test_a_broken_parquet_value_is_one_dropped_document(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = [b"First text here.", b"Br\xffken \xc3 bytes.", b"Third text here."]
    column = pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
    titles = pyarrow.array([b"a", b"b", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"title": titles, "text": column}), tmp_path / "t.parquet")
    found = read("parquet", tmp_path / "t.parquet")
    assert [(d.text, d.dropped) for d in found] == [
        ("First text here.", ""),
        ("", "bad_utf8"),
        ("Third text here.", ""),
    ]


# --------------------------------------------------------------------------------------------
# The whole command
# --------------------------------------------------------------------------------------------


def test_a_detected_encoding_is_counted_and_a_damaged_manifest_overwritten(
    tmp_path: Path, vocab: Path, capsys
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "a.txt").write_bytes((SPOKEN["ru"] * 3 + "\n").encode("cp1251"))
    (books / "b.txt").write_text("It was the best of times, and it was the worst of times.\n")
    (books / "c.txt").write_bytes(HEBREW)
    out = tmp_path / "out"
    given = [*f"--books {books} --out {out} --vocab {vocab} --workers 1".split()]
    assert main([*given, "--validation-fraction", "0"]) == 0
    (source,) = Manifest.load(out).sources
    assert source["encodings"] == {"cp1251": 1}
    assert source["dropped"] == {"bad_utf8": 1}
    assert "books: 1 in cp1251 (detected" in capsys.readouterr().err
    (out / "manifest.json").write_text("{damaged")
    with pytest.raises(DataError, match=r"manifest\.json"):
        main([*given, "--validation-fraction", "0"])
    assert main([*given, "--validation-fraction", "0", "--overwrite"]) == 0
    assert Manifest.load(out).documents["written"] == 2
