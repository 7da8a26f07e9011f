"""The fast ways of cleaning and splitting give what the plain ways give."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.clean import clean_line, clean_paragraphs
from data_prep.sources import wikipedia
from data_prep.tokens import sentences
from data_prep.tokens.sentences import sentence_splitter
from data_prep.wiki import links, names

text = st.text(
    st.sampled_from("aB. !?\"'&;\t\n\r\x00\x85\xa0\u2028  ampnbs<>é漢—“”…"), max_size=120
)


@settings(max_examples=400)
@given(text)
@example("a &amp; b\nc")
@example("a\xa0b\n\x85")
@example("one\n\n two \n")
@example("a\rb\r\nc\r\r\nd\n\re")
def test_clean_paragraphs_are_the_cleaned_lines(text: str) -> None:
    lines = re.split("\r*\n|\r", text)
    assert clean_paragraphs(text) == "\n".join(filter(None, map(clean_line, lines)))


def test_plain_links_show_what_the_stack_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of balanced texts: what is unbalanced has no right answer.
    rng = random.Random(1)
    marks = ["[[", "[[", "]]", "]]", "|", "a", "b c", ":", " ", "\n", "File", "(d)"]
    texts = ["[[a [[b]] c|d [[e|f]]]]", "[[File:x|thumb|a [[b|c]] d]]", "[[a| ]] [[|b]] [[w:a]]"]
    while len(texts) < 1500:
        text = "".join(rng.choices(marks, k=rng.randrange(2, 14)))
        pairs = re.findall(r"\[\[|\]\]", text)
        depths = [*itertools.accumulate(1 if pair == "[[" else -1 for pair in pairs)]
        if depths and min(depths) == 0 == depths[-1]:
            texts.append(text)
    assert sum(bool(links.PLAIN_LINK.search(text)) for text in texts) > 150
    fast = [links.link_text(text, names.site()) for text in texts]
    monkeypatch.setattr(links, "PLAIN_LINK", re.compile("(?!)()"))
    assert fast == [links.link_text(text, names.site()) for text in texts]


def test_escapes_in_one_pass_as_one_by_one() -> None:
    page = "<page><title>T</title><ns>0</ns><text>%s</text></page>"
    text = "A &amp;lt; b &lt;i&gt;of&lt;/i&gt; &quot;c&quot;&amp;quot; &apos;d&apos; it is."
    found = wikipedia.page_document((page % text).encode(), names.site())
    assert found.text == 'A < b of "c"" \'d\' it is.'


def plain_sentences(document: str) -> list[str]:
    segment = sentences.safe_segmenter()
    found = []
    for paragraph in document.split("\n"):
        for piece in sentences.cut(paragraph, sentences.LONGEST_PARAGRAPH):
            for sentence in sentences.whole_abbreviations(segment("en", piece)):
                for part in sentences.cut(sentence, sentences.LONGEST_SENTENCE):
                    if part.strip():
                        found.append(part.strip())
    return found


@settings(max_examples=100)
@given(text)
def test_sentences_are_those_of_each_paragraph(text: str) -> None:
    assert sentence_splitter("en")(text) == plain_sentences(text)


@pytest.mark.parametrize("space", ["\xa0", "\u2003", "\u202f", "\u3000", "\u2028"])
def test_a_wide_space_between_an_initial_and_a_full_stop_costs_nothing(space: str) -> None:
    """sentencex 1.0.32 panics on it, which would end the whole preparation."""
    found = sentence_splitter("en")(f"He met J{space}. Then he left.")
    assert found == ["He met J .", "Then he left."]


def test_long_sentences_are_cut() -> None:
    document = "word " * 1000 + "end. " + "Short one. " * 300 + "\n" + "x" * 5000
    found = sentence_splitter("en")(document)
    assert found == plain_sentences(document)
    assert max(map(len, found)) <= sentences.LONGEST_SENTENCE
    assert "".join(found).replace(" ", "") == document.replace(" ", "").replace("\n", "")


def test_real_articles(shared_data: Path) -> None:
    split = sentence_splitter("en")
    path = shared_data / "wikipedia" / "extracted-mlperf" / "wiki_00"
    document = path.read_text(encoding="utf-8")[:200_000]
    assert split(document) == plain_sentences(document)
    lines = filter(None, map(clean_line, document.split("\n")))
    assert clean_paragraphs(document) == "\n".join(lines)
