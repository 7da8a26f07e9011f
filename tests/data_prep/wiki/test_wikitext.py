from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.wikipedia import page_document
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.formulas import formula_text
from data_prep.wiki.names import site

TAIL = " It stands here so that the line is long enough to be prose."


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''' and ''italic'' and '''''both'''''.", "Bold and italic and both."),
        ("A [[link]], a [[target|label]], two [[word]]s.", "A link, a label, two words."),
        ("Nested {{a|{{b|c}}|d}} templates.", "Nested templates."),
        ("A fact.<ref>Smith {{cite|x}} 1999</ref> Two.<ref name=a /> End.", "A fact. Two. End."),
        ("X <!-- hidden [[ {{ --> y.", "X y."),
        ("The formula <math>a < b</math> holds.", "The formula holds."),
        ("[[File:A.jpg|thumb|A [[nested]] caption]]Text starts.", "Text starts."),
        ("[[Image:A.jpg|x]][[Category:Y]][[fr:Z]]Text starts.", "Text starts."),
        ("See [[:Category:Trees]] for more.", "See Category:Trees for more."),
        ("The [[Star Trek: Voyager]] series.", "The Star Trek: Voyager series."),
        ("The [[Mercury (planet)|]] orbit.", "The Mercury orbit."),
        ("From [http://x.org the site] and [http://y.org].", "From the site and."),
        ("On [irc://x.org/y a channel], [HTTPS://x.org a site].", "On a channel, a site."),
        ("Tom &amp; Jerry, 5&nbsp;km, a &lt; b.", "Tom & Jerry, 5 km, a < b."),
        ("Paris ({{IPA-fr|paʁi}}; born) is ( , ) here.", "Paris (born) is here."),
        ("It is {{convert|5|km|mi}} long.", "It is 5 km long."),
        ("From {{convert|5|to|10|km}} long.", "From 5 to 10 km long."),
        ("The word {{lang|fr|mot}} and {{lang-de|Wort}}.", "The word mot and Wort."),
        ("He sailed in {{USS|Enterprise}} then.", "He sailed in USS Enterprise then."),
        ("A {{nowrap|[[a|b]] c}} d.", "A b c d."),
        ("A {{citation needed span|text=b c|date=x}}, {{cn-span|d e}}.", "A b c, d e."),
        ("A <nowiki/> b and <nowiki>c  d</nowiki>.", "A b and c d."),
        ("__NOTOC__ Text without a table of contents.", "Text without a table of contents."),
        ("H<sub>2</sub>O is <span style='x'>water</span>.", "H2O is water."),
        ("Sodium ({{chem|Na|2|O}}) and {{IPA|/a/}}, {{angbr|a}}.", "Sodium (Na2O) and /a/, ⟨a⟩."),
        ("It fell at {{coord|13|19|N|169|9.5|W|type:event}}.", "It fell at 13°19′N 169°9.5′W."),
        ("Top {{coord|1|2|N|3|4|E|display=title}}of it.", "Top of it."),
        ("Where <math>x_1 \\le \\pi</math> is <math>\\frac{a}{b}</math>.", "Where x1 ≤ π is a/b."),
        (
            "Such as {{x}}, or {{z}}. And <math>\\begin{a}</math>, so.",
            "Such as, or. And, so.",
        ),
        ("Such as {{x}}, {{y}}, {{z}}, here, {{z}}.", "Such as, here."),
        ("Waves|url = = News|access-date = 2016. (Pashto |x) a.", "Waves. (Pashto x) a."),
        ("{{cite}}. First of many.", "First of many."),
        ("Up to {{formatnum:3003}} m, {{formatnum:{{x}}}}.", "Up to 3,003 m."),
        ("L'''été''' d''''Orsay''' ends.", "L'été d'Orsay ends.".replace("L'été", "Lété")),
    ],
)
def test_markup_to_prose(wikitext: str, prose: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == prose + TAIL


def test_paragraphs_headings_tables_lists() -> None:
    text = """Intro line one
goes on here in the same paragraph.

== History ==
Something happened in the year 1900, they say.

{| class="wikitable"
! A !! B
|-
| 1 || {| nested
| x
|}
|}
* short item
* A list item that is a full sentence of many words.
:A remark that is indented and also a full sentence here.
== See also ==
* [[Other]]
These words are in a section that is left out, all of them.
=== Deeper ===
These too, since they belong to the section above them.
== Legacy ==
The legacy lives on until this very day, people say.
== References ==
{{reflist}}
"""
    assert clean_wikitext(text).split("\n") == [
        "Intro line one goes on here in the same paragraph.",
        "Something happened in the year 1900, they say.",
        "A list item that is a full sentence of many words.",
        "A remark that is indented and also a full sentence here.",
        "The legacy lives on until this very day, people say.",
    ]


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("It is one sentence\n<!-- a note -->\nthat goes on.", "It is one sentence that goes on."),
        ("It is one\n <!-- a\n b --> <!-- c --> \nthat goes on.", "It is one that goes on."),
        ("It is one <!-- a\n\n b -->that goes on.", "It is one that goes on."),
        ("It is one that goes on.\n\n<!-- a -->\n\nEnd.", "It is one that goes on.\nEnd."),
    ],
)
def test_a_line_of_comments_does_not_end_a_paragraph(wikitext: str, prose: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == prose + TAIL


@pytest.mark.parametrize(
    "broken",
    [
        "{{unclosed",
        "[[unclosed",
        "<ref>unclosed",
        "{| unclosed",
        "}} stray",
        "]] stray",
        "<!-- never",
        "<ref",
        "'''never",
        "[http://x never",
        "|}",
        "<math>",
    ],
)
def test_unbalanced_markup_loses_at_most_its_line(broken: str) -> None:
    before = "This is the first paragraph of the article."
    after = "This is the last paragraph of the article."
    cleaned = clean_wikitext(f"{before}\n\n{broken}\n\n{after}").split("\n")
    assert cleaned[0] == before
    if broken != "<!-- never":  # to the end, as in MediaWiki
        assert cleaned[-1] == after


@pytest.mark.parametrize(
    "unit",
    [
        "{{",
        "}}",
        "[[",
        "]]",
        "{{a",
        "[[a|",
        "<ref>",
        "<ref ",
        "<ref \n",
        "<!--",
        "{|\n",
        "\n|}",
        "<math>a",
        "''",
        "(",
        "( ,",
        ", ",
        "[http://",
        "&",
        "&#1",
        "&#11111111",
        "<a",
        "=\n",
        "= x",
        "* ",
        "{{{",
        "[[File:a|",
        "{{convert|",
        "__",
        "https://",
        "<nowiki>",
        "<nowiki/>",
        "-{",
        "-{a|",
        "<table>",
        "<ref><ref></ref>",
        "<table><table></table>",
        "<br>",
        "<![CDATA[",
        "{{{a|",
        "}}}",
        "{{{{{",
        "[<nowiki/>[",
        "'''a ''",
        "（",
        "，",
        "_a_",
        "{{lc:",
        "{{PAGENAME}}",
    ],
)
def test_time_is_linear_in_any_repeated_markup(unit: str) -> None:
    began = time.process_time()
    clean_wikitext(unit * 100_000)
    assert time.process_time() - began < 5.0


markup = st.sampled_from(
    [
        "{{",
        "}}",
        "[[",
        "]]",
        "|",
        "{|",
        "|}",
        "\n",
        "==",
        "''",
        "'''",
        "<ref>",
        "</ref>",
        "<ref/>",
        "<!--",
        "-->",
        "<math>",
        "</math>",
        "&amp;",
        "&#",
        "[http://a ",
        "]",
        "*",
        ":",
        "File:",
        "=",
        "convert|5|km",
        "lang|fr|mot",
        "__TOC__",
        "word",
        "A sentence. ",
        " ",
        "(",
        ")",
        "<br>",
        "{{{",
        "}}}",
        "<nowiki/>",
        "-{",
        "}-",
        "zh-hans:",
        ";",
        "<table>",
        "</table>",
        "北京",
        "。",
    ]
)


@settings(max_examples=300)
@given(st.lists(markup, max_size=60).map("".join))
def test_no_markup_makes_it_fail(text: str) -> None:
    cleaned = clean_wikitext(text)
    assert "{{" not in cleaned and "[[" not in cleaned
    assert all(line == line.strip() and line for line in cleaned.split("\n") if cleaned)


def test_citations_in_lists_are_left_out() -> None:
    item = "* Black, Jeremy. War for America: The Fight for Independence. 1991. ISBN 0-312-06713-5."
    kept = "* The war for America was the fight for its independence, and long."
    assert clean_wikitext(f"{item}\n{kept}") == kept[2:]


def test_formulas_that_no_line_can_hold_leave_nothing() -> None:
    assert formula_text(r"\sum_{i=1}^{n} x_i") == "∑i=1^n xi"
    assert formula_text(r"\left( \sin x \right)^2") == "( sin x )^2"
    for tex in (
        r"\begin{matrix} a & b \end{matrix}",
        "a < b",
        "a|b",
        r"\unknown x",
        "x" * 81,
        "\\",
    ):
        assert formula_text(tex) == ""


@settings(max_examples=200)
@given(st.text(st.sampled_from(r"\{}_^ab frac sqrt alpha 12&<|"), max_size=60))
def test_no_formula_leaves_markup(tex: str) -> None:
    text = formula_text(tex)
    assert not set("\\{}<>|&") & set(text) and text == " ".join(text.split())


def test_line_breaks_are_inside_sentences_and_two_end_a_paragraph() -> None:
    text = "It is<br>one<BR />with<br\n/>breaks in it.<br><br>This is the next paragraph here."
    assert clean_wikitext(text).split("\n") == [
        "It is one with breaks in it.",
        "This is the next paragraph here.",
    ]
    chinese = "北京是<br>中国的首都，<br />它位于北部。"
    assert clean_wikitext(chinese) == chinese.replace("<br>", "").replace("<br />", "")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("See http://a.b/c_(d) now.", "See now."),
        ("See (http://a.b/c_(d)) and (http://a.b/) now.", "See and now."),
        (
            "See (at http://a.b/c_(d)). So http://a.b, or ftp://x.y/z; end.",
            "See (at). So, or; end.",
        ),
        ("官方網站http://example.com/a，位於北京（http://a.b）。", "官方網站，位於北京。"),
        ("Он на сайте «http://пример.рф/а», да.", "Он на сайте «, да."),
    ],
)
def test_bare_addresses_are_removed_as_mediawiki_recognises_them(text: str, left: str) -> None:
    assert clean_wikitext(text + TAIL) == left + TAIL


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("'''!!!''' is a band.", "!!! is a band."),
        ("[[!Kung people]] and [[A|#b]] are.", "!Kung people and #b are."),
        ("{{lang|ktz|!Xun}} and ''{{lang|ktz|!Xun}}'' are.", "!Xun and !Xun are."),
        ("&#33;Kung is &excl;Kung.", "!Kung is !Kung."),
        ("!Kung people are.", "!Kung people are."),
        ("<b>!Xun</b> are.", "!Xun are."),
        ("'''[[#9 Dream|#9 Dream]]''' is a song.", "#9 Dream is a song."),
        ("''':)''' smiles.", ":) smiles."),
        ("&#61; equals =", "= equals ="),
        ("{x, y} is a set.", "{x, y} is a set."),
        (
            "&#123;&#124; begins a &#91;&#91;table&#93;&#93; &vert; so.",
            "{| begins a [[table]] | so.",
        ),
        ("In C <code>a || b</code> is either.", "In C a || b is either."),
    ],
)
def test_a_mark_that_is_shown_is_text(wikitext: str, shown: str) -> None:
    """Lists, tables and headings are those of the markup, not of what it shows."""
    assert clean_wikitext(wikitext + TAIL) == shown + TAIL
    item = f"* {wikitext}{TAIL}"
    if "|" not in shown and wikitext[0] != "!":
        assert clean_wikitext(f"x\n{item}").endswith(shown + TAIL)


def test_a_page_in_cdata(made: SimpleNamespace) -> None:
    page = made.page("T", "X").replace(
        ">X<", "><![CDATA[A &amp; B <i>is</i> in [[CDATA]] here.]]><"
    )
    assert page_document(page.encode(), site()).text == "A & B is in CDATA here."
    mixed = made.page("T", "X").replace(">X<", ">It is &lt;b&gt;<![CDATA[<i>here</i>]]> at last.<")
    assert page_document(mixed.encode(), site()).text == "It is here at last."
    damaged = made.page("T", "X").replace(">X<", ">Here 1 < 2 &amp; so on.<")
    assert page_document(damaged.encode(), site()).text == "Here 1 < 2 & so on."
