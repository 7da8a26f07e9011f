"""Templates whose words belong to the sentence: the shipped table, and a user's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bertds.data.formats.manifest import Manifest
from bertds.errors import ConfigError, DataError
from bertds.system.atomic_files import sha256_file
from data_prep.build_wiki_books import main
from data_prep.wiki import templates
from data_prep.wiki.expressions import expression_value
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.names import site
from data_prep.wiki.template_functions import FUNCTIONS
from data_prep.wiki.templates import check_file, templates_of

TAIL = " It stands here so that the line is long enough to be prose."
SHIPPED = Path(templates.__file__).with_name("templates.yaml")


# By the documentation pages of these templates on their own Wikipedias; of a unit, what is
# before its conversion.
@pytest.mark.parametrize(
    ("language", "wikitext", "shown"),
    [
        ("en", "{{convert|5|ft|6|in|cm|0|abbr=on}}", "5 ft 6 in"),
        ("en", "{{convert|12|st|7|lb}}", "12 st 7 lb"),
        ("en", "{{convert|10|to|20|mi|km}}", "10 to 20 mi"),
        ("en", "{{convert|2|x|3|x|4|m}}", "2 × 3 × 4 m"),
        ("en", "{{convert|5|ft|2|in|to|5|ft|8|in}}", "5 ft 2 in to 5 ft 8 in"),
        ("en", "{{convert|100|km|0}}", "100 km"),
        ("en", "{{convert|1,000|sqmi|km2}}", "1,000 sq mi"),
        ("en", "{{cvt|-5|C|F}}", "-5 °C"),
        ("en", "{{convert|{{formatnum:3003}}|m}}", "3,003 m"),
        ("en", "{{langx|de|Wort}}", "Wort"),
        ("en", "{{lang|la|''vox''}}", "vox"),
        ("en", "{{Lang_fr|x}}", ""),
        ("en", "{{lang-grc-gre|λόγος}}", "λόγος"),
        ("en", "{{Nihongo|'''Kyoto'''|京都|Kyōto}}", "Kyoto (京都, Kyōto)"),
        ("en", "{{nihongo|Kyoto|京都}}", "Kyoto (京都)"),
        ("en", "{{zh|c=北京|p=Běijīng}}", "北京, Běijīng"),
        ("en", "{{height|m=1.85}}", "1.85 m"),
        ("en", "{{height|ft=6|in=2}}", "6 ft 2 in"),
        ("en", "{{chem|H|2|SO|4}}", "H2SO4"),
        ("en", "{{chem2|H2O}}", "H2O"),
        ("en", "{{pi}}", "π"),
        ("en", "{{as of|2010|5}}", "As of May 2010"),
        ("en", "{{As of|2004|11|22|lc=y}}", "as of 22 November 2004"),
        ("en", "{{as of|2013|June|8}}", "As of 8 June 2013"),
        ("en", "{{as of|2009|since=y}}", "Since 2009"),
        ("en", "{{as of|2009|alt=In 2009}}", "In 2009"),
        ("en", "{{start date|1999|5|1}}", "May 1, 1999"),
        ("en", "{{start date|1999|5|1|df=y}}", "1 May 1999"),
        ("en", "{{birth date and age|1990|12}}", "December 1990"),
        ("en", "{{dts|2001-02-03}}", "February 3, 2001"),
        ("en", "{{date|3 February 2001}}", "3 February 2001"),
        ("en", "{{val|5.3|0.2|u=km}}", "5.3±0.2 km"),
        ("en", "{{val|6.02|e=23|u=mol|up=kg}}", "6.02×10^23 mol/kg"),
        ("en", "{{circa|1900|1910}}", "c. 1900–1910"),
        ("en", "{{reign|1066|1087}}", "r. 1066–1087"),
        ("en", "{{ordinal|21}} {{ordinal|11}}", "21st 11th"),
        ("en", "{{frac|5|1|2}}", "5 1/2"),
        ("en", "{{ship|HMS|Victory|1765}}", "HMS Victory"),
        ("en", "{{sclass|Nimitz|aircraft carrier}}", "Nimitz-class aircraft carrier"),
        ("en", "{{lang|2=mot|1=fr}}", "mot"),
        ("en", "{{Template:Nowrap|a b}}", "a b"),
        ("en", "{{lc:ABC}} {{ucfirst:abc}}", "abc Abc"),
        ("en", "the ''Titanic''{{'}}s and '''X'''{{'s}}", "the Titanic's and X's"),
        ("en", "{{ill|A|de|B|lt=C}} {{ill|A|de}}", "C A"),
        ("en", "{{Citation|title=A book|last=B}}", ""),
        ("en", "{{cite web|url=http://x.org|title=T}}", ""),
        ("fr", "{{unité|300|km/h}}", "300 km/h"),
        ("fr", "{{s|XX|e}}", "XXe siècle"),
        ("fr", "{{XIXe siècle}}", "XIXe siècle"),
        ("fr", "{{-s|V|e}}", "Ve siècle av. J.-C."),
        ("fr", "{{date|14|juillet|1789}}", "14 juillet 1789"),
        ("fr", "{{citation|Le mot}}", "« Le mot »"),
        ("fr", "{{japonais|Kyoto|京都}}", "Kyoto (京都)"),
        ("fr", "{{1er}} {{n°|5}} {{M.|Dupont}}", "1er no 5 M. Dupont"),
        ("fr", "{{sp|XV|e|au|XVI|e}}, {{1er janvier}}", "XVe au XVIe siècle, 1er janvier"),
        ("de", "{{EnS|word}} {{Höhe|800|DE-NHN}}", "word 800 m"),
        ("de", "{{lang|fr|mot}}", "mot"),
        ("es", "{{siglo|XV}}", "siglo XV"),
        ("es", "{{fecha|3|2|2001}}", "3 de febrero de 2001"),
        ("es", "{{unidad|5|km}}", "5 km"),
        ("it", "{{M|5||km}}", "5 km"),
        ("pt", "{{dtlink|3|2|2001}}", "3 de fevereiro de 2001"),
        ("ru", "{{нп5|Город|город|en|Town}}", "город"),
        ("ru", "{{lang-en|word}}", "word"),
        ("ja", "{{読み仮名|東京|とうきょう}}", "東京（とうきょう）"),
        ("ja", "{{仮リンク|町|en|Town|label=街}}", "街"),
        ("zh", "{{link-en|城市|City}}", "城市"),
        ("zh", "{{tsl|en|City|城市}}", "城市"),
        ("ko", "{{llang|en|word}}", "word"),
        ("cs", "{{km|5}}", "5 km"),
        ("en", "{{nihongo2|日本}}", "日本"),
        ("en", "Hawai{{okina}}i", "Hawaiʻi"),
        ("en", "{{convert|1//2|mi|km}}", "1/2 mi"),
        ("en", "{{convert|3+1/2|in}}", "3 1/2 in"),
        ("en", "{{convert|1+1//2|to|2+1⁄4|ft}}", "1 1/2 to 2 1/4 ft"),
        ("en", "{{convert|150|e6km|e6mi}}", "150 million km"),
        ("en", "{{convert|12345|m}}", "12,345 m"),
        ("en", "{{convert|2|acre|ha}}, {{convert|1|acre}}", "2 acres, 1 acre"),
        ("en", "{{convert|22|e6acre}}, a {{convert|5|acre|adj=on}}", "22 million acres, a 5 acre"),
        ("en", "{{convert|1|to|2|mile}}, {{convert|5|foot}}", "1 to 2 miles, 5 feet"),
        ("de", "{{convert|2|acre}}", "2 acre"),
        ("en", "{{val|12345|u=m}}", "12345 m"),
        ("en", "{{as of|2010|5|3|df=US}}", "As of May 3, 2010"),
        ("en", "{{formatnum:1234567.8}} {{formatnum:-1234}}", "1,234,567.8 -1,234"),
        ("en", "{{formatnum:1,234.5|R}} {{formatnum:1234|NOSEP}}", "1234.5 1234"),
        ("en", "{{formatnum:{{#expr: 3 * 411 + 1}}}}", "1,234"),
        ("en", "{{nts|1234}} {{formatnum:text}}", "1,234 text"),
        ("fr", "{{s2|XIX|e|XX|e}}", "XIXe et XXe siècles"),
        ("fr", "{{s2-|IV|e|V|e}}", "IVe et Ve"),
        ("fr", "{{sp|XIX|e|et au|XX|e}}", "XIXe et au XXe siècle"),
        ("fr", "{{sp-|X|e|ou|XI|e}}", "Xe ou XIe"),
        ("fr", "{{-s-|V|e}}", "Ve av. J.-C."),
        ("fr", "{{date|1|mai|2010}}", "1er mai 2010"),
        ("fr", "{{date|1 mai 2010}} {{date-|12|5|2010}}", "1er mai 2010 12 mai 2010"),
        ("fr", "{{incise|et voilà}}", "– et voilà –"),
        ("fr", "{{incise|et voilà|stop}}", "– et voilà"),
        ("fr", "{{lnobr|Article|le mot}} {{lnobr|mot}}", "le mot mot"),
        ("fr", "{{formatnum:1234567.89}} {{unité|1234.5|km}}", "1 234 567,89 1 234,5 km"),
        ("it", "{{M|5|ul=km}} {{M|5|um=km|e=3}}", "5 km 5×10^3 km"),
        ("it", "{{M|100|k|m}} {{M|1500|u=m}}", "100 km 1.500 m"),
        ("it", "{{inglese|word}}", "word"),
        ("it", "{{data|1|1|2010}}", "1º gennaio 2010"),
        ("ar", "{{إنج|word}} {{لات|verbum}} {{لغ|en|text}}", "word verbum text"),
        ("ar", "{{تحويل|5|km|mi}}", "5 km"),
        ("sr", "{{јез-рус|слово}} {{јез|рус|слово}}", "слово слово"),
        ("de", "{{FormatZahl|1234567}} {{formatnum:1234.5}}", "1.234.567 1.234,5"),
        ("de", "{{convert|12345|km}}", "12.345 km"),
        ("tr", "{{dönüştür|5|km|mi}}", "5 km"),
        ("ja", "{{要出典 範囲|本文|date=2010年}}", "本文"),
        ("es", "{{formatnum:1234}} {{formatnum:12345}}", "1234 12.345"),
        ("hi", "{{formatnum:12345678}}", "1,23,45,678"),
        ("ltg", "{{formatnum:12345}}", "12 345"),
        ("en", "{{siècle text}}{{s|XX|e}}", ""),  # short names hold in their own wiki only
        ("ltg", "{{convert|5|km}} {{lang|lv|vārds}}", "5 km vārds"),
    ],
)
def test_words_of_templates(language: str, wikitext: str, shown: str) -> None:
    wiki = site((f"language={language}",))
    assert clean_wikitext(f"Text {wikitext} end.{TAIL}", wiki) == " ".join(
        f"Text {shown} end.{TAIL}".split()
    )


def test_the_name_of_the_page() -> None:
    text = f"'''{{{{PAGENAME}}}}''' and {{{{FULLPAGENAME}}}} and {{{{НАЗВАНИЕ_СТРАНИЦЫ}}}}.{TAIL}"
    assert clean_wikitext(text, site(), "The Title") == (
        f"The Title and The Title and The Title.{TAIL}"
    )


class _Strict(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would keep the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"{sorted(k for k in keys if keys.count(k) > 1)}"
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1+2)*3", "9"),
        ("2^3^2", "64"),
        ("-2^2", "4"),
        ("7 mod 3", "1"),
        ("10 / 4", "2.5"),
        ("10 div 4 round 0", "3"),
        ("-2.5 round 0", "-3"),
        ("1 / 3 round 2", "0.33"),
        ("12345 round -2", "12300"),
        ("1 + 1 round 0 + 0", "2"),
        ("3 − 1", "2"),
        (".5*2", "1"),
        ("1/3", "0.33333333333333"),
        ("1 / 0", ""),
        ("9^9^9^9", ""),
        ("", ""),
        ("x + 1", ""),
        ("1 +", ""),
        ("(1", ""),
        ("1 2", ""),
        ("1" * 300, ""),
        ("(" * 199, ""),
        ("__import__", ""),
    ],
)
def test_expressions_have_the_value_of_mediawikis_documentation(expression, value) -> None:
    assert expression_value(expression) == value


def test_the_included_table_is_complete() -> None:
    table = yaml.load(SHIPPED.read_text("utf-8"), _Strict)
    dates, numbers, ranges = (table.pop(kind) for kind in ("dates", "numbers", "ranges"))
    words = {"to", "and", "or", "by", "through", "to about", ", and"}
    assert all(set(entry) <= words and all(entry.values()) for entry in ranges.values())
    assert all(set(entry) <= {"group", "decimal", "least", "lakhs"} for entry in numbers.values())
    assert all(len(entry["months"]) == 12 and "{y}" in entry["form"] for entry in dates.values())
    assert len(table) >= 30
    for language, entries in table.items():
        names = [name for given in entries.values() for name in given]
        assert all(isinstance(name, str) and name for name in names), language
        lower = [name.lower() for name in names]
        assert len(lower) == len(set(lower)), f"{language}: a name is there twice"
    used = {shown[1:] for e in table.values() for shown in e if shown[:1] == "=" and shown[1:]}
    assert used == set(FUNCTIONS)
    check_file(SHIPPED)


def test_an_entry_without_values_shows_nothing() -> None:
    for language in ("en", "fr", "de", "ja", "ru"):
        table = templates_of(language)
        text = "".join(f"{{{{{name}|}}}}" for name, words in table.names.items() if words)
        assert "{" not in clean_wikitext(text + TAIL, site((f"language={language}",)))


USERS = """
all:
  "{1}": [everywhere]
  "[{gone}]plain \\\\[{1}\\\\]": brackets
nl:
  "{1}[ ({2|alt}[, {3}])]": [mijn_sjabloon, Andere]
  "": convert
  "=height": lengte
dates:
  nl: {form: "{y}, {d} {m}", months: [jan, feb, mrt]}
"""


def test_a_users_file_takes_precedence(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(USERS)
    check_file(path)
    wiki = site(("language=nl", f"templates=00:{path}"))

    def shown(text: str) -> str:
        return clean_wikitext(f"Text {text} end.{TAIL}", wiki).removesuffix(f" end.{TAIL}")[5:]

    assert shown("{{Mijn sjabloon|a|b|c}}") == "a (b, c)"
    assert shown("{{andere|a|alt=d}}") == "a (d)"
    assert shown("{{everywhere|a}}") == "a"
    assert shown("{{brackets|a}}") == "plain [a]"
    assert shown("{{lengte|m=2}}") == "2 m"
    assert shown("x{{convert|5|km}}") == "x"
    assert clean_wikitext(f"Text {{{{convert|5|km}}}} end.{TAIL}") == f"Text 5 km end.{TAIL}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", 'expected languages, each with entries "what it shows": [names]'),
        ("en: [a]", "en: expected languages"),
        ("en: {'{1}': [1]}", "'{1}': [1]: expected a text and a list of names"),
        ("en: {'=nothing': [a]}", "=nothing: no such function; allowed: as_of, centuries"),
        ("en: {'{1}[ x': [a]}", "unbalanced brackets"),
        ("en: {'{1}]': [a]}", "unbalanced brackets"),
        ("en: {", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        check_file(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and message in said and "\n" not in said


def test_the_option_reaches_the_reader_and_the_manifest(
    tmp_path: Path, made: SimpleNamespace, vocab: Path
) -> None:
    mine, dump = tmp_path / "mine.yaml", tmp_path / "d.xml"
    dump.write_bytes(made.dump([made.page("A", "It was {{mine|in the city}} by all who were.")]))
    mine.write_text("all: {'{1}': [mine]}")
    sources = ["--wiki", str(dump), "--vocab", str(vocab), "--validation-fraction", "0"]
    sources += ["--workers", "1", "--min-tokens", "1"]
    with_file = [*sources, "--out", str(tmp_path / "with"), "--wiki-templates", str(mine)]
    assert main([*sources, "--out", str(tmp_path / "without")]) == main(with_file) == 0
    without, found = Manifest.load(tmp_path / "without"), Manifest.load(tmp_path / "with")
    assert found.splits["train"].tokens == without.splits["train"].tokens + 3
    assert "wiki_templates_sha256" not in without.settings
    assert found.settings["wiki_templates_sha256"] == sha256_file(mine)
    mine.write_text("all: {'{1}, {1}': [mine]}")
    with pytest.raises(DataError, match="wiki_templates_sha256"):
        main(with_file)
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        main([*sources, "--out", str(tmp_path / "x"), "--wiki-templates", "missing.yaml"])


@pytest.mark.parametrize(
    ("language", "shown"),
    [
        ("en", "5 to 10 km, 5 by 10 m, 2 and 3 m, 1 through 4 m"),
        ("simple", "5 to 10 km, 5 by 10 m, 2 and 3 m, 1 through 4 m"),
        ("", "5 to 10 km, 5 by 10 m, 2 and 3 m, 1 through 4 m"),
        ("fr", "5 à 10 km, 5 sur 10 m, 2 et 3 m, 1 à 4 m"),
        ("es", "5 a 10 km, 5 por 10 m, 2 y 3 m, 1 a 4 m"),
        ("no", "5 til 10 km, 5 × 10 m, 2 og 3 m, 1 til 4 m"),
        ("xx", "5–10 km, 5 × 10 m, 2, 3 m, 1–4 m"),
    ],
)
def test_ranges_are_in_the_words_of_the_wiki(language: str, shown: str) -> None:
    text = (
        "{{convert|5|to|10|km|mi}}, {{convert|5|by(x)|10|m|ft}}, {{cvt|2|and|3|m}}, "
        "{{convert|1|through|4|m}}"
    )
    tail = ": these words make it a sentence."
    assert clean_wikitext(text + tail, site((f"language={language}",))) == shown + tail


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{s2-|XVIII|XIX}}", "XVIIIe et XIXe"),
        ("{{s2-|XVIII|e|XIX|e}}", "XVIIIe et XIXe"),
        ("{{s2|I|er|II|e}}", "Ier et IIe siècles"),
        ("{{sp|XVI|e|au|XVII|e}}", "XVIe au XVIIe siècle"),
        ("{{sp-|XVI|XVII}}", "XVIe au XVIIe"),
        ("{{-s2|V|IV}}", "Ve et IVe siècles av. J.-C."),
        ("{{-sp-|V|e|à|III|e}}", "Ve à IIIe av. J.-C."),
    ],
)
def test_two_centuries_in_french(template: str, shown: str) -> None:
    found = clean_wikitext(f"Du {template} on ne sait rien du tout.", site(("language=fr",)))
    assert found == f"Du {shown} on ne sait rien du tout."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Let <math>x</math> be {{unclosed here. More text follows in this sentence.",
            "Let x be unclosed here. More text follows in this sentence.",
        ),
        (
            "設 <math>x</math> は {{数である。この文はまだまだ続いていく、そしてここで終わる。",
            "設 x は 数である。この文はまだまだ続いていく、そしてここで終わる。",
        ),
        (
            "A word of text is in this line. {{cite web |url=x. More text follows here.",
            "A word of text is in this line.",
        ),
        (
            "A word of text is in this line. {{citation needed",
            "A word of text is in this line.",
        ),
        (
            "The word {{lang|en|[[A|B}} C]] is long enough for this paragraph.",
            "The word B C is long enough for this paragraph.",
        ),
    ],
)
def test_an_unclosed_template_loses_no_words(text: str, shown: str) -> None:
    assert clean_wikitext(text) == shown


@pytest.mark.parametrize(
    ("language", "text", "shown"),
    [
        (
            "it",
            "L'''{{lang|la|Eneide}}'' è un poema; l{{'}}''Iliade'' è un altro.",
            "L'Eneide è un poema; l'Iliade è un altro.",
        ),
        (
            "en",
            "{{math|''x'' {{=}} 2}} and 1 {{=}} 1 are both true.",
            "x = 2 and 1 = 1 are both true.",
        ),
        (
            "en",
            "He said {{\"'}}''x''{{'\"}} and nothing else.",
            "He said \"'x'\" and nothing else.",
        ),
        ("de", "Am {{Datum|1|2|2003}} war es so weit.", "Am 1. Februar 2003 war es so weit."),
        ("es", "Fue el {{fecha|1|enero|1900}} o antes.", "Fue el 1 de enero de 1900 o antes."),
        ("fr", "Le {{date|1|janvier|1900}} fut froid.", "Le 1er janvier 1900 fut froid."),
        ("zh", "成立于{{start date|1976|4|1}}。", "成立于1976年4月1日。"),
        ("ja", "それは{{start date|1976|4}}に始まった。", "それは1976年4月に始まった。"),
        (
            "ko",
            "그것은 {{start date|1976|4|1}}에 시작되었다.",
            "그것은 1976년 4월 1일에 시작되었다.",
        ),
        ("hu", "Ez {{dátum|1999|5}} óta van így.", "Ez 1999. május óta van így."),
        ("es", "Desde {{fecha|1999|5}} es así.", "Desde mayo de 1999 es así."),
        ("de", "Am {{start date|1999|5|1}} war es so.", "Am 1. Mai 1999 war es so."),
        ("en", "It was in {{start date|1999|5}} then.", "It was in May 1999 then."),
        ("pt", "São {{converter|5|a|10|km}} ou mais.", "São 5 a 10 km ou mais."),
        ("pt", "São {{converter|5|a|ha}} ou mais.", "São 5 a ou mais."),
    ],
)
def test_words_of_other_wikis(language: str, text: str, shown: str) -> None:
    assert clean_wikitext(text + TAIL, site((f"language={language}",))) == shown + TAIL
