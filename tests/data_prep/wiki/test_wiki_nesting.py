"""What pairs with what: braces, quotes, tables, references."""

from __future__ import annotations

import mwparserfromhell
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.wiki.extract import _template_spans, clean_wikitext

TAIL = " It stands here so that the line is long enough to be prose."


# What MediaWiki's parser gives for its own tests of quotes and for the examples of its help page.
@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("''Eagle'''s", "Eagle's"),
        ("''Title''<nowiki/>'s", "Title's"),
        ("l'''italique''", "l'italique"),
        ("L''''armonium'''", "L'armonium"),
        ("'''this is about bold '' and italic'''", "this is about bold and italic"),
        ("'''bold'' apostrophe", "'bold apostrophe"),
        ("'''''both'''''", "both"),
        ("''''''six'''''", "'six"),
        ("x'''''''y", "x''y"),
        ("plain''italic'''bold-italic'''italic''plain", "plainitalicbold-italicitalicplain"),
        ("a '''b\nc''' d\ne ''f", "a b c d e f"),
        ("''flag of the '''b", "flag of the 'b"),
        ("don't", "don't"),
    ],
)
def test_quotes_are_balanced_over_the_line(wikitext: str, shown: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == shown + TAIL


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("<nowiki>[[page]]</nowiki>", "[[page]]"),
        ("<nowiki>{{x|y}} and '''b''' &lt;</nowiki>", "{{x|y}} and '''b''' <"),
        ("<NOWIKI>f(); a[0] || b</NOWIKI>", "f(); a[0] || b"),
        ("<nowiki>* x\n\ny</nowiki>", "* x y"),
        ("<nowiki>http://x.org <ref>a</ref></nowiki>", "http://x.org <ref>a</ref>"),
        ("<nowiki>&amp;lt; &#91;</nowiki>", "&lt; ["),
        ("{{nowrap|<nowiki>a|b</nowiki>}}", "a|b"),
        ("[<nowiki/>[a]] b {<nowiki/>{c}}", "[[a]] b {{c}}"),
        ("[[<nowiki/>a]] and [[b]]", "a and b"),
        ("<!-- <nowiki> --> a [[b|c]]", "a c"),
        ("a <nowiki>never closed [[b|c]]", "a never closed c"),
        ("a </nowiki> b", "a b"),
        ("<![CDATA[a [[b]] c]]> d", "a [[b]] c d"),
    ],
)
def test_nowiki_is_literal(wikitext: str, shown: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == shown + TAIL


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("a {{{1}}} b", "a b"),
        ("a {{{1|x}}} b", "a x b"),
        ("a {{{1|{{nowrap|x}}}}} b", "a x b"),
        ("a {{{1|{{{2|x}}}}}} b", "a x b"),
        ("a {{x|{{{b|}}}}} b", "a b"),
        ("a {{x{{{y}}}z}} b", "a b"),
        ("a {{{{{1}}}|x}} b", "a b"),
        ("a {{{{x}}}} b", "a {} b"),  # MediaWiki: one brace of each is text
        ("a {{x|a={{{c}}}}} after}}| b", "a after b"),
        ("a {{{!}}} b", "a b"),
    ],
)
def test_parameters_and_braces(wikitext: str, shown: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == shown + TAIL


def _calls(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Templates and parameters whose names and arguments are given."""
    argument = st.tuples(st.sampled_from(["|", "|a=", "| "]), inner).map("".join)
    arguments = st.lists(argument, max_size=3).map("".join)
    name = st.sampled_from(["n", "m o", "{{{p}}}", "{{{p|}}}"])
    template = st.tuples(st.just("{{"), name, arguments, st.just("}}")).map("".join)
    default = st.one_of(st.just(""), inner.map("|{}".format))
    parameter = st.tuples(st.just("{{{p"), default, st.just("}}}")).map("".join)
    return st.lists(st.one_of(st.sampled_from(["x", " "]), template, parameter), max_size=3).map(
        "".join
    )


@settings(max_examples=200)
@given(st.recursive(st.sampled_from(["x", "y z", ""]), _calls, max_leaves=12))
def test_braces_pair_as_mwparserfromhell_pairs_them(text: str) -> None:
    nodes = mwparserfromhell.parse(text).nodes
    theirs = [str(node) for node in nodes if type(node).__name__ in ("Template", "Argument")]
    assert [text[start:end] for start, end, _ in _template_spans(text)] == theirs


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("-{zh-hans:计算机;zh-hant:電腦}-", "计算机"),
        ("-{zh-hant:電腦; zh-hans:计算机;}-", "计算机"),
        ("-{zh-tw:公車; zh-hk:巴士}-", "公車"),
        ("-{A|zh-cn:出租车;zh-tw:計程車}-", "出租车"),
        ("-{H|zh-cn:出租车;zh-tw:計程車}-", ""),
        ("-{T|zh-cn:标题;zh-tw:標題}-", ""),
        ("-{后}-", "后"),
        ("-{zh-hans;zh-hant|文字}-", "文字"),
        ("-{R|乾}-", "乾"),
        ("-{zh-hans:里面-{zh-cn:甲;zh-tw:乙}-;zh-hant:裡面}-", "里面甲"),
        ("-{zh-hans:[[页|面]];zh-hant:[[頁|面]]}-", "面"),
        ("-{sr-ec:реч;sr-el:reč}-", "реч"),
        ("x-{y", "x-{y"),
    ],
)
def test_one_language_variant_is_chosen(wikitext: str, shown: str) -> None:
    assert clean_wikitext(f"A{wikitext}B" + TAIL) == f"A{shown}B" + TAIL


@pytest.mark.parametrize(
    ("wikitext", "shown"),
    [
        ("<table><tr><td>a<table><tr><td>b</td></tr></table>c</td></tr></table>Text.", "Text."),
        ("Text<ref>a <ref>b</ref> c</ref> d.", "Text d."),
        ("Text<ref>a <ref name=x /> c</ref> d.", "Text d."),
        ("Text<ref name=a>x b <ref>c</ref> d.", "Text d."),
        ("Text<ref>{{cite|<ref>x</ref>}}</ref> d.", "Text d."),
        ("{|\n| a\n{|\n| b\n|}\n| c\n|}\nText.", "Text."),
        ("A -{{{lang|en|x}}}- and -{zh:{{lang|en|y}};zh-tw:z}-.", "A x and y."),
        ("Gas (<chem>CO2</chem>) is.", "Gas (CO2) is."),
    ],
)
def test_nested_tables_and_references(wikitext: str, shown: str) -> None:
    assert clean_wikitext(wikitext + TAIL) == shown + TAIL


def test_an_unclosed_reference_does_not_remove_later_paragraphs() -> None:
    text = "One.<ref>a\n\nThe second paragraph has words.<ref>b</ref>\n\nThe third has them too."
    assert clean_wikitext(text).split("\n")[-1] == "The third has them too."
    assert "</ref" not in clean_wikitext(text)


@pytest.mark.parametrize(
    "table",
    [
        "! A !! B\n|-\n| 1 || 2\n|}",
        "{| class=x\n! A\n! B\n|-\n| 1\n| 2 || a cell without an end",
        "{{!}}-\n{{!}} a cell of a row that a template began\n! Head\n|}",
        "| a = b\n| c = d\n}}",
    ],
)
def test_rows_of_an_incomplete_table_are_not_text(table: str) -> None:
    assert clean_wikitext(f"Before.{TAIL}\n{table}\n\nAfter.{TAIL}") == (
        f"Before.{TAIL}\nAfter.{TAIL}"
    )
