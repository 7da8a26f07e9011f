"""Languages without spaces, and with marks of their own: no paragraph is lost, lines join."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bertds.data.scripts import (
    SENTENCE_ENDS,
    ends_sentence,
    gap,
    join_lines,
    mostly_unspaced,
    word_count,
)
from data_prep.document import Unit
from data_prep.selection.filters import FilterSettings, document_filter
from data_prep.selection.quality import apply_rules
from data_prep.sources import READERS, file_units, source_file
from data_prep.sources.books import book_text
from data_prep.tokens.sentences import LONGEST_SENTENCE, sentence_splitter, whole_abbreviations
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.names import site

SAMPLES = yaml.safe_load((Path(__file__).parent / "samples" / "paragraphs.yaml").read_text("utf-8"))


def paragraphs(language: str) -> list[str]:
    sample = SAMPLES[language]
    return [frame.format(name) for name in sample["names"] for frame in sample["frames"]]


def kept(text: str, given: list[str]) -> float:
    """The share of the characters of paragraphs that a text holds, spaces not counted."""
    wanted = sum(len("".join(p.split())) for p in given)
    lines = {"".join(line.split()) for line in text.split("\n")}
    return sum(len(p) for p in map("".join, map(str.split, given)) if p in lines) / wanted


@pytest.mark.parametrize("language", SAMPLES)
def test_thirty_paragraphs_survive_as_a_wiki_as_a_book_and_in_lists(language: str) -> None:
    given = paragraphs(language)
    assert len(given) == len(set(given)) == 30
    wiki = site((f"language={language}",))
    assert kept(clean_wikitext("\n\n".join(given), wiki), given) >= 0.95
    assert kept(book_text("\n\n".join(given)), given) >= 0.95
    long = [p for p in given if word_count(p) >= 12]
    assert kept(clean_wikitext("\n".join(f"* {p}" for p in long), wiki), long) >= 0.95


@pytest.mark.parametrize("language", SAMPLES)
def test_hard_wrapped_lines_are_joined_as_they_were(language: str) -> None:
    given = paragraphs(language)
    # Wrapped as such books are: at a space where there is one, else anywhere between letters.
    wrapped = []
    for paragraph in given:
        cut = paragraph.find(" ", 20)
        cut = cut if 0 < cut < 40 else 20
        wrapped.append(f"{paragraph[:cut].rstrip()}\n{paragraph[cut:].lstrip()}")
    assert kept(book_text("\n\n".join(wrapped)), given) >= 0.95


@pytest.mark.parametrize("language", SAMPLES)
@pytest.mark.parametrize("splitter", ["own", "en"])
def test_a_paragraph_is_several_sentences(language: str, splitter: str) -> None:
    split = sentence_splitter(language if splitter == "own" else "en")
    given = paragraphs(language)
    found = [split(paragraph) for paragraph in given]
    several = sum(len(sentences) >= 2 for sentences in found)
    # A Thai or Lao space is a sentence's end only where the phrase before it is long enough.
    assert several >= (10 if language in ("th", "lo") else 28)
    for paragraph, sentences in zip(given, found, strict=True):
        assert "".join("".join(sentences).split()) == "".join(paragraph.split())


@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        ("fr", "L’an 300 av. J.-C. Il mourut.", ["L’an 300 av. J.-C.", "Il mourut."]),
        ("it", "Nel 300 a.C. Poi venne.Andò.", ["Nel 300 a.C.", "Poi venne.", "Andò."]),
        ("hr", "Godine 300 pr.Kr. Bilo je.", ["Godine 300 pr.Kr.", "Bilo je."]),
        ("fa", "در ۳۰۰ ق.م. بود.", ["در ۳۰۰ ق.م.", "بود."]),
        ("bn", "খ্রি.পূ. ৩০০। তিনি বি.এ. পাস।", ["খ্রি.পূ.", "৩০০।", "তিনি বি.এ. পাস।"]),
        ("th", "เมื่อ พ.ศ. 2533", ["เมื่อ พ.ศ.", "2533"]),
        ("en", "It was in 1990.Then he left.", ["It was in 1990.", "Then he left."]),
    ],
)
def test_no_sentence_ends_inside_an_abbreviation(
    language: str, text: str, sentences: list[str]
) -> None:
    """A byte-level BPE would see a space there: the sentences are joined by spaces."""
    assert sentence_splitter(language)(text) == sentences


def test_many_abbreviations_take_linear_time() -> None:
    pieces = ["a."] * 400_000
    begun = time.process_time()
    assert whole_abbreviations([*pieces, "C. "]) == ["a." * 400_000 + "C. "]
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        (["并入", "於漢"], "并入於漢"),
        (["かつて都が", "置かれた"], "かつて都が置かれた"),
        (["分久必合，", "合久必分"], "分久必合，合久必分"),
        (["他說：", "Hello"], "他說：Hello"),
        (["使用", "Python"], "使用 Python"),
        (["ตั้งอยู่ริม", "แม่น้ำ"], "ตั้งอยู่ริมแม่น้ำ"),
        (["ទន្លេ", "ធំ"], "ទន្លេធំ"),
        (["ទីក្រុង។", "វា"], "ទីក្រុង។ វា"),
        (["རྒྱལ་ས་", "རེད།"], "རྒྱལ་ས་རེད།"),
        (["작은", "도시"], "작은 도시"),
        (["one", "two"], "one two"),
        (["l'été", "à Paris"], "l'été à Paris"),
    ],
)
def test_lines_join(lines: list[str], joined: str) -> None:
    assert join_lines(lines) == joined
    assert gap(lines[0], lines[1]) == joined[len(lines[0]) : len(joined) - len(lines[1])]


def test_ends_of_sentences() -> None:
    for end in SENTENCE_ENDS:
        assert ends_sentence(f"x{end}") and ends_sentence(f"x{end}」") and ends_sentence(f"x{end})")
    assert ends_sentence("Τι είναι;") and not ends_sentence("that is;")
    assert ends_sentence("Այո:") and not ends_sentence("such as:")
    assert not ends_sentence("") and not ends_sentence("word") and not ends_sentence("，")


def test_words() -> None:
    assert word_count("It is so.") == 3
    assert word_count("l'été est là") == 3
    assert word_count("北京是中国的首都") == 5  # 8 letters, 1.6 a word
    assert 4 <= word_count("กรุงเทพเป็นเมืองหลวง") <= 5
    assert word_count("使用 Python 3") == 3
    assert mostly_unspaced("北京是首都") and not mostly_unspaced("The city 北京 is old")


def test_long_text_without_spaces_is_cut_after_marks() -> None:
    document = "这是一个很长的句子，" * 700
    found = sentence_splitter("zh")(document)
    assert "".join(found) == document
    assert max(map(len, found)) <= LONGEST_SENTENCE
    assert all(sentence.endswith("，") for sentence in found)


def test_a_book_without_blank_lines_is_cut_at_its_indents() -> None:
    text = "第一回\n　　天下大勢，分久必合，合久必\n分。\n　　後來光武中興，傳至獻帝。\n"
    assert book_text(text).split("\n") == [
        "天下大勢，分久必合，合久必分。",
        "後來光武中興，傳至獻帝。",
    ]


def test_gaps_between_wide_marks_are_closed() -> None:
    text = "北京（{{x}}）是中国的首都，{{y}}，{{z}}。它位于（{{x}}，华北）平原的北部。"
    zh = site(("language=zh",))
    assert clean_wikitext(text, zh) == "北京是中国的首都。它位于（华北）平原的北部。"
    ar = site(("language=ar",))
    assert clean_wikitext("في المدينة مدرسة، {{x}}، ومكتبة ومسجد قديم.", ar) == (
        "في المدينة مدرسة، ومكتبة ومسجد قديم."
    )


@pytest.mark.parametrize("language", ["zh", "ja", "th", "km", "my"])
def test_quality_rules_count_the_words_of_scripts_without_spaces(language: str) -> None:
    text = "\n".join(paragraphs(language)[:10])
    split = sentence_splitter(language)
    for rules in (("gopher",), ("c4",)):
        assert apply_rules(rules, text, split, language) == (text, "")
    assert apply_rules(("gopher",), text[:40], split, language)[1] == "gopher_short"
    unlike = "\n".join(dict.fromkeys(f for f in SAMPLES[language]["frames"]))
    assert apply_rules(("repetition",), unlike, split, language)[1] == ""
    assert apply_rules(("repetition",), text[:10] * 60, split, language)[1] != ""
    check = document_filter(FilterSettings(min_words=30, max_words=400), None, split, language)
    assert check is not None
    assert check(text)[1] == "" and check(text[:30])[1] == "too_short"
    assert check(text * 9)[1] == "too_long"


def test_stop_words_are_checked_only_for_english() -> None:
    text = "\n".join(paragraphs("el"))
    assert apply_rules(("gopher",), text, sentence_splitter("el"), "el") == (text, "")
    assert apply_rules(("gopher",), text, sentence_splitter("en"))[1] == "gopher_stop_words"


def test_line_breaks_in_extracted_articles(tmp_path: Path, made: SimpleNamespace) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="" title="京">\n京\n\n古い都で<br>ある。多くの寺<br />がある。\n</doc>\n',
        "utf-8",
    )
    file = source_file("wiki", path, path.name, ())
    (unit,) = file_units(file, 1 << 20)
    assert isinstance(unit, Unit)
    assert [d.text for d in READERS[unit.reader](unit)] == ["古い都である。多くの寺がある。"]
