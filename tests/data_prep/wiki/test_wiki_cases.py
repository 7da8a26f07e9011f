"""Small dumps after public reports of other extractors' faults, and what each must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.document import Document
from data_prep.sources import READERS, file_units, find_files
from data_prep.tokens.sentences import sentence_splitter

CASES = Path(__file__).parent / "cases"
TAIL = " The rest of this paragraph is ordinary prose, long enough to be kept by any rule."


def read(case: str, kind: str = "wiki", options: tuple[str, ...] = ()) -> list[Document]:
    files = find_files(kind, [str(CASES / case)], options)
    return [d for f in files for u in file_units(f, 1 << 20) for d in READERS[u.reader](u)]


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        (
            "02-local-namespaces/tr.xml",
            [
                "İzmir, Türkiye'nin üçüncü büyük şehridir ve Ege kıyısında yer alır. Liman şehri "
                "olarak bilinir.",
                "Ankara, Türkiye'nin başkenti ve en kalabalık ikinci şehridir. Şehir Anadolu'nun "
                "ortasındadır.",
            ],
        ),
        (
            "03-possessive-italics/d.xml",
            [
                f"The Eagle's upper stage left the surface.{TAIL}",
                f"The Voyager's images came back.{TAIL}",
                f"Le mot l'italique et L'armonium sont ici.{TAIL}",
            ],
        ),
        (
            "04-titles-like-language-codes/d.xml",
            [
                "She starred in CSI: Miami and FBI: International after Re:Zero; the ISO: 9001 "
                f"text and M: Man.{TAIL}",
                "Her band made SOS: Live in 2001, and then XXX: State of the Union was "
                f"filmed.{TAIL}",
            ],
        ),
        (
            "05-nowiki/d.xml",
            [
                f"To link, write [[page name]] and to call, write {{{{name}}}} in the box.{TAIL}",
                f"In C the operator | and a[[0]] are used here.{TAIL}",
            ],
        ),
        (
            "06-parameters/d.xml",
            [
                f"The value default stands, here and there.{TAIL}",
                f"Before and after tail.{TAIL}",
            ],
        ),
        ("07-html-tables/d.xml", [f"Real.{TAIL}"] * 3),
        (
            "10-inline-templates/d.xml",
            [
                f"The word (Wort; mot) is old. The plain arbre means tree.{TAIL}",
                "It is 5 ft 6 in tall, 10 ± 2 km off, 10 × 20 m wide, 6 ft 2 in high, from 3–5 "
                f"km.{TAIL}",
                "L'aïkibudo (合気武道, aikibudō) est un art, long de 300 km, né au XXe "
                f"siècle.{TAIL}",
                "On 3 February 2001 and May 1, 1999 he and Hans and vox and ‘voice’ and X (日本) "
                "met at 5.3 km; 1/2 of US$5 and £100 and Mr and hte and text here." + TAIL,
            ],
        ),
    ],
)
def test_each_case_gives_its_text(case: str, texts: list[str]) -> None:
    documents = read(case)
    assert [d.text for d in documents] == texts
    assert not any(d.dropped for d in documents)


@pytest.mark.parametrize("name", ["zh", "ja"])
def test_articles_without_spaces_are_documents_of_several_sentences(name: str) -> None:
    documents = read(f"01-cjk-wiki/{name}.xml")
    assert len(documents) == 4 and not any(d.dropped for d in documents)
    for language in (name, "en"):
        split = sentence_splitter(language)
        assert [len(split(d.text)) >= 2 for d in documents] == [True] * 4
    assert documents[0].text.startswith({"zh": "北京是中华人民", "ja": "東京は日本の首都"}[name])


@pytest.mark.parametrize("language", ["zh", "en"])
def test_plain_text_without_spaces_is_cut_into_sentences(language: str) -> None:
    documents = read("01-cjk-wiki/zh.txt", "text", ("blank-line",))
    split = sentence_splitter(language)
    assert [len(split(d.text)) for d in documents] == [3, 2, 3, 2, 2, 3, 3, 2, 2]


def test_redirects_of_all_languages_and_a_list_that_begins_like_one() -> None:
    documents = read("09-redirects/d.xml")
    assert [d.dropped for d in documents] == ["redirect"] * 12 + ["", ""]
    assert documents[-1].text.startswith("Albania Tirana is the capital city")


def test_a_chinese_book_is_joined_without_spaces() -> None:
    (book,) = read("17d-chinese-book-utf8", "books")
    assert book.text.split("\n") == [
        "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。及秦滅之後，楚、漢分爭，又并入於漢。"
        "漢朝自高祖斬白蛇而起義，一統天下。",
        "後來光武中興，傳至獻帝，遂分為三國。",
        "他說：「好。」",
    ]
