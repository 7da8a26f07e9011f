"""Encodings that are detected, and those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.sources.charsets import detect
from data_prep.sources.formats import wide_encoding
from tests.support.read_sources import read

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
    "el (long)": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα "
    "δικαιώματα. Είναι προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "zh": "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
    "zh-tw": "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "uk (long)": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони "
    "наділені розумом і совістю. Є їжа. Це ще не все, бо її ґудзик загубився.",
    "kk": "Барлық адамдар тумысынан азат және қадір-қасиеті мен құқықтары тең болып келеді.",
    "ru (Mac)": "Все люди рождаются свободными. Ёлка, съезд, объявление, щука; «Да!» — сказал он.",
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
    "ru": ("cp1251", "koi8-r", "iso8859-5", "cp866", "cp855"),
    "ru (Mac)": ("mac_cyrillic",),
    "uk": ("cp1251",),
    "uk (long)": ("cp1125", "koi8_u"),
    "kk": ("kz1048",),
    "el": ("cp1253", "iso8859_7", "cp737"),
    "el (long)": ("cp1253", "mac_greek"),
    "ar": ("cp1256", "iso8859_6"),
    "zh": ("gb18030",),
    "zh-tw": ("big5",),
    "ja": ("shift_jis", "euc_jp", "iso2022_jp", "iso2022_jp_3"),
    "ko": ("euc_kr", "iso2022_kr"),
    "th": ("tis_620", "cp874"),
}


@pytest.mark.parametrize(
    ("language", "encoding"), [(one, e) for one, encodings in ENCODINGS.items() for e in encodings]
)
def test_the_encoding_of_a_book_is_detected(language: str, encoding: str) -> None:
    data = (SPOKEN[language] + "\n").encode(encoding, "ignore") * 8
    assert data.decode(detect(data)) == data.decode(encoding)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        # The letter "š" is "¹" in Windows-1252, and "ž" is "¾". Both have "č" where it has "è".
        ("Naše življenje je že davno lepše. Všeč mi je, če kdo piše, češnje in hiše.", "iso8859_2"),
        (
            "Čovjek želi nešto više, naš život je već duži, a može biti i ljepši.",
            "iso8859_2",
        ),
        # All the letters of the first sentence are Slovak ones in Windows-1250.
        ("Perché la città è più bella, disse Søren, e però non è così: è qui. È già là.", "cp1252"),
        ("La ragazza è più alta di così, però Åse e Håkon già lo sanno, e tornerà.", "cp1252"),
        # The capital "Š" of Estonian does not exist in Windows-1257.
        ("Šveits on väga kõrge mägedega maa, kus öösel sööb šeff. Põhjas on külm.", "cp1252"),
        ("Šveits on väga kõrge mägedega maa, kus öösel sööb šeff. Põhjas on külm.", "cp1257"),
        # The dot of "l·l" is a letter of Catalan.
        ("Il·lusió és al·lucinant: la col·lecció és tranquil·la i excel·lent, però.", "cp1252"),
        # "ź" of Windows-1250 is a control character in ISO 8859-2.
        ("Jaździban élt. " + "Az őrült férfi gyűlésre hívta őket, és jó volt. " * 9, "cp1250"),
    ],
)
def test_a_near_alphabet_is_not_preferred(text: str, encoding: str) -> None:
    data = f"{text}\n".encode(encoding) * 20
    assert data.decode(detect(data)) == f"{text}\n" * 20


def test_a_book_of_undecided_encoding_is_not_decoded() -> None:
    assert detect(HEBREW) == ""  # it might as well be Cyrillic
    declared = b"Title: X\r\nCharacter set encoding: windows-1255\r\n\r\n" + HEBREW
    assert detect(declared) == "cp1255"
    # What says Latin-1 is often Windows-1252.
    assert detect(b"Character set encoding: ISO-8859-1\n\n\x93Well\x94, na\xefve") == "cp1252"
    assert detect(b"Character set encoding: ASCII\n\nstra\xdfe gr\xfcn") == "cp1252"


@pytest.mark.parametrize(("language", "encoding"), [("ja", "iso2022_jp"), ("zh", "hz")])
def test_text_of_7_bits_is_not_taken_for_ascii(
    tmp_path: Path, language: str, encoding: str
) -> None:
    text = (SPOKEN[language] + "\n\n") * 4
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    (book,) = read("books", path)
    assert book.encoding == encoding and "".join(book.text.split()) == "".join(text.split())
    assert {d.dropped for d in read("text", path)} == {"bad_utf8"}  # as in any other encoding


@pytest.mark.parametrize("begin", ["\x1b[31mRed\x1b[0m", "See~{Knuth 1984}~} or ~{\\bf~}, which"])
def test_an_escape_that_switches_no_set_is_text(tmp_path: Path, begin: str) -> None:
    (tmp_path / "a.txt").write_text(f"{begin} costs $5, she said, in plain English.\n")
    for kind in ("books", "text"):
        (document,) = read(kind, tmp_path / "a.txt")
        assert "costs $5" in document.text and not document.encoding


@pytest.mark.parametrize("language", [*SPOKEN, "hi", "he", "ka"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_read(tmp_path: Path, language: str, encoding: str) -> None:
    more = {
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
    said = capsys.readouterr().err
    assert "books: 1 in cp1251 (encoding detected" in said
    assert "not decoded  books: 1 (convert them to UTF-8, or name a book's encoding in" in said
    # As the message says.
    (books / "c.txt").write_bytes(b"Character set encoding: windows-1255\n\n" + HEBREW)
    assert main([*given, "--validation-fraction", "0", "--overwrite"]) == 0
    assert Manifest.load(out).sources[0]["encodings"] == {"cp1251": 1, "cp1255": 1}
    assert "not decoded" not in capsys.readouterr().err
    (out / "manifest.json").write_text("{damaged")
    with pytest.raises(DataError, match=r"manifest\.json"):
        main([*given, "--validation-fraction", "0"])
    assert main([*given, "--validation-fraction", "0", "--overwrite"]) == 0
    assert Manifest.load(out).documents["written"] == 3


def test_a_thai_book_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = (SPOKEN["th"] + "\n\n") * 4
    path.write_bytes(text.encode("tis_620"))
    (book,) = read("books", path)
    assert book.text.split() == text.split()
    assert (book.encoding, book.dropped) == ("cp874", "")
