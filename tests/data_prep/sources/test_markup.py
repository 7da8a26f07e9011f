"""Markup and entities, in extracted articles, abstracts and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.errors import DataError
from data_prep.wiki.extract import clean_wikitext
from tests.support.read_sources import read


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
    with pytest.raises(DataError, match=r"extracted articles .* use --wiki for this file"):
        read("jsonl", path)
    path.write_text("<mediawiki></mediawiki>")
    with pytest.raises(DataError, match=r"a MediaWiki dump, .* use --wiki for this file"):
        read("jsonl", path)


def test_comparisons_are_kept_in_abstracts(tmp_path: Path) -> None:
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


def test_comparisons_are_kept_in_a_dump() -> None:
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
