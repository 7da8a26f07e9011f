from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.formulas import formula_text

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
        ("Tom &amp; Jerry, 5&nbsp;km, a &lt; b.", "Tom & Jerry, 5 km, a < b."),
        ("Paris ({{IPA-fr|paʁi}}; born) is ( , ) here.", "Paris (born) is here."),
        ("It is {{convert|5|km|mi}} long.", "It is 5 km long."),
        ("From {{convert|5|to|10|km}} long.", "From 5 to 10 km long."),
        ("The word {{lang|fr|mot}} and {{lang-de|Wort}}.", "The word mot and Wort."),
        ("He sailed in {{USS|Enterprise}} then.", "He sailed in USS Enterprise then."),
        ("A {{nowrap|[[a|b]] c}} d.", "A b c d."),
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
        ("Up to {{formatnum:3003}} m, {{formatnum:{{x}}}}.", "Up to 3003 m."),
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
    "broken", ["{{unclosed", "[[unclosed", "<ref>unclosed", "{| unclosed", "}} stray", "]] stray",
               "<!-- never", "<ref", "'''never", "[http://x never", "|}", "<math>"]
)  # fmt: skip
def test_what_is_unbalanced_costs_its_line_at_most(broken: str) -> None:
    before = "This is the first paragraph of the article."
    after = "This is the last paragraph of the article."
    cleaned = clean_wikitext(f"{before}\n\n{broken}\n\n{after}").split("\n")
    assert cleaned[0] == before
    if broken != "<!-- never":  # to the end, as in MediaWiki
        assert cleaned[-1] == after


@pytest.mark.parametrize(
    "unit",
    ["{{", "}}", "[[", "]]", "{{a", "[[a|", "<ref>", "<ref ", "<ref \n", "<!--", "{|\n", "\n|}",
     "<math>a", "''", "(", "( ,", ", ", "[http://", "&", "&#1", "&#11111111", "<a", "=\n", "= x",
     "* ", "{{{", "[[File:a|", "{{convert|", "__", "https://"],
)  # fmt: skip
def test_time_is_linear_in_any_repeated_markup(unit: str) -> None:
    began = time.process_time()
    clean_wikitext(unit * 100_000)
    assert time.process_time() - began < 5.0


markup = st.sampled_from(
    ["{{", "}}", "[[", "]]", "|", "{|", "|}", "\n", "==", "''", "'''", "<ref>", "</ref>", "<ref/>",
     "<!--", "-->", "<math>", "</math>", "&amp;", "&#", "[http://a ", "]", "*", ":", "File:", "=",
     "convert|5|km", "lang|fr|mot", "__TOC__", "word", "A sentence. ", " ", "(", ")", "<br>"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(r"\{}_^ab frac sqrt alpha 12&<|"), max_size=60))
def test_no_formula_leaves_markup(tex: str) -> None:
    text = formula_text(tex)
    assert not set("\\{}<>|&") & set(text) and text == " ".join(text.split())
