"""Namespaces, languages, redirects, switches: by the dump, else by MediaWiki's own names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.clean import word_set
from data_prep.sources import READERS, file_units, source_file
from data_prep.wiki import generate_names
from data_prep.wiki.extract import clean_wikitext
from data_prep.wiki.lines import skipped_sections
from data_prep.wiki.names import foreign_redirects, language_codes, site, site_options

TAIL = " It stands here so that the line is long enough to be prose."
SITEINFO = (
    "<siteinfo><dbname>xxwiki</dbname><namespaces>"
    '<namespace key="0" /><namespace key="6">Zeichnung</namespace>'
    '<namespace key="14">Schublade</namespace><namespace key="100">Tür Eins</namespace>'
    "</namespaces></siteinfo>"
)


def test_the_dumps_own_names_come_first() -> None:
    wiki = site(site_options(f'<mediawiki xml:lang="de">{SITEINFO}'))
    assert wiki.language == "de"
    text = "[[Zeichnung:a.png|mini|x]][[Schublade:y]][[tür_eins:z]][[Datei:b.png|x]]Hier."
    assert clean_wikitext(text + TAIL, wiki) == "Hier." + TAIL
    # A page of another namespace is shown, as MediaWiki shows it.
    assert clean_wikitext("[[Tür Eins:z]]" + TAIL, wiki) == "Tür Eins:z" + TAIL


@pytest.mark.parametrize(
    ("language", "links"),
    [
        ("de", "[[Datei:a.jpg|mini|Text]][[Bild:b.jpg|x]][[Kategorie:Y]]"),
        ("fr", "[[Fichier:a.jpg|vignette|Texte]][[Catégorie:Y]]"),
        ("tr", "[[Resim:a.jpg|küçükresim|sağ|250px|Metin [[b]]]][[Kategori:Y]]"),
        ("ru", "[[Изображение:a.jpg|мини|Текст]][[Категория:Y]]"),
        ("ja", "[[ファイル:a.jpg|サムネイル|文]][[画像:b.jpg|x]]"),
        ("zh", "[[文件:a.jpg|缩略图|文]][[圖像:b.jpg|thumb|x]][[分類:Y]]"),
        ("no", "[[Fil:a.jpg|miniatyr|x]][[Bilde:b.jpg|x]][[Kategori:Y]]"),
        ("nb", "[[Fil:a.jpg|miniatyr|x]][[Kategori:Y]]"),
        ("als", "[[Datei:a.jpg|mini|x]][[Kategorie:Y]]"),
        ("zh-min-nan", "[[文件:a.jpg|thumb|x]][[分類:Y]]"),
        ("bat-smg", "[[Vaizdas:a.jpg|thumb|x]][[Kategorija:Y]]"),
        ("fiu-vro", "[[Pilt:a.jpg|pisi|x]][[Katõgooria:Y]]"),
        ("ar", "[[ملف:a.jpg|تصغير|نص]][[تصنيف:Y]]"),
        ("vi", "[[Tập tin:a.jpg|nhỏ|chữ]][[Thể loại:Y]]"),
        ("th", "[[ไฟล์:a.jpg|thumb|x]][[หมวดหมู่:Y]]"),
        ("ltg", "[[Fails:a.jpg|thumb|x]][[Kategoreja:Y]]"),
        ("sr", "[[Датотека:a.jpg|мини|x]][[Категорија:Y]]"),
    ],
)
def test_files_and_categories_of_a_wiki_without_siteinfo(language: str, links: str) -> None:
    for options in ((f"language={language}",), ()):  # a dump may not even say its language
        assert clean_wikitext(links + "Text." + TAIL, site(options)) == "Text." + TAIL


def test_a_file_of_an_unknown_namespace_is_known_by_its_options() -> None:
    text = "[[Ukendt:a.jpg|miniatyr|200px|x]][[Ukendt:b.jpg|upright|thumb|y]]Text."
    assert clean_wikitext(text + TAIL) == "Text." + TAIL
    assert clean_wikitext("A [[Serie: Teil|Folge]] b." + TAIL) == "A Folge b." + TAIL


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[[CSI: Miami]]", "CSI: Miami"),
        ("[[Re:Zero]]", "Re:Zero"),
        ("[[NCIS: Los Angeles]]", "NCIS: Los Angeles"),
        ("[[It: Chapter Two]]", "It: Chapter Two"),
        ("[[M: Man]]", "M: Man"),
        ("[[xyz:Page]]", "xyz:Page"),
        ("[[Star Wars: Andor]]", "Star Wars: Andor"),
        ("[[de:Berlin]]", ""),
        ("[[zh-min-nan:Berlin]]", ""),
        ("[[simple:Berlin]]", ""),
        ("[[be-x-old:Берлін]]", ""),
        ("[[ltg:Berlins]]", ""),
        ("[[Wikipedia:Rules]]", "Wikipedia:Rules"),
        ("[[Portal: Stories]]", "Portal: Stories"),
        ("[[Book: A Novel]]", "Book: A Novel"),
        ("[[Draft: Day]]", "Draft: Day"),
        ("[[Meta: Art]]", "Meta: Art"),
        ("[[commons:Category:X]]", ""),
        ("[[wikt:word]]", ""),
        ("[[w:Page]]", ""),
        ("[[:de:Berlin]]", "de:Berlin"),
        ("[[:Category:Trees]]", "Category:Trees"),
        ("[[wikt:word|a word]]", "a word"),
    ],
)
def test_links_with_a_colon(link: str, shown: str) -> None:
    assert clean_wikitext(f"Text{link}end." + TAIL) == f"Text{shown}end." + TAIL


def test_pages_of_other_namespaces_without_ns(tmp_path: Path, made: SimpleNamespace) -> None:
    text = "Ein Text mit genug Wörtern, um ein Artikel zu sein. Und noch ein Satz."
    titles = ["Diskussion:A", "Vorlage:B", "Benutzer_Diskussion:C", "Tür Eins:D", "Star Trek: E"]
    path = tmp_path / "d.xml"
    data = made.dump([made.page(t, text, namespace=None) for t in titles], siteinfo=SITEINFO)
    path.write_bytes(data.replace(b"<mediawiki ", b'<mediawiki xml:lang="de" '))
    file = source_file("wiki", path, path.name, ())
    documents = [d for u in file_units(file, 1 << 20) for d in READERS["dump"](u)]
    assert [d.dropped for d in documents] == ["namespace"] * 4 + [""]


@pytest.mark.parametrize(
    ("text", "redirect"),
    [
        ("#REDIRECT [[A]]", True),
        ("#ПЕРЕНАПРАВЛЕНИЕ [[Б]]", True),
        ("#YÖNLENDİRME [[Ç]]", True),
        ("#ALIH [[A]] {{R}}\n[[Kategori:B]]", True),
        ("＃重定向 [[北京]]", True),
        ("#तालिका_नई [[क]]", True),  # no table has it, and it is all there is
        ("#Al [[Capone]] was a gangster of Chicago who is known in all the world.\n# b", False),
        ("#Albania [[Tirana]] is its capital city, and has been for a hundred years now.", False),
        ("#Ohjaus [[X]] is a word that Finnish has for a redirect.", False),
        ("#Ohjaus [[X]] {{R}}\n[[Luokka:Y]]", True),
        ("#OHJAUS [[X]] and whatever text there may be after it.", True),
        ("#OHJAUS [[X]] is the first of a list.\n# [[Y]] is its second one.", False),
        ("#OHJAUS [[X]]\n\nThis is an article that begins so, and is in English.", False),
        ("#WEITERLEITUNG [[X]]\n\n[[Category:Y]]\n{{R from move}}<!-- a comment -->", True),
        ("# [[Berlin]] is the first city of this list, which goes on after it.", False),
    ],
)
def test_redirects(text: str, redirect: bool, made: SimpleNamespace) -> None:
    from data_prep.sources.wikipedia import page_document

    document = page_document(made.page("T", text).encode(), site())
    assert (document.dropped == "redirect") == redirect


@pytest.mark.parametrize(
    ("language", "word", "redirect"),
    [
        ("fi", "#OHJAUS", True),
        ("fi", "#Ohjaus", True),  # MediaWiki does not ask for capitals
        ("fi", "#redirect", True),
        ("de", "#OHJAUS", False),
        ("bar", "#WEITERLEITUNG", True),  # Bavarian falls back to German
        ("fr", "#WEITERLEITUNG", False),
        ("zh", "#重定向", True),
        ("tr", "#YÖNLENDİRME", True),
        ("nb", "#OMDIRIGERING", True),
        ("", "#OHJAUS", False),
    ],
)
def test_a_redirect_in_the_words_of_the_wiki_may_have_any_text_after_it(
    language: str, word: str, redirect: bool, made: SimpleNamespace
) -> None:
    from data_prep.sources.wikipedia import page_document

    text = f"{word} [[X]]\n\nThese words are on the page, too.{TAIL}"
    document = page_document(made.page("T", text).encode(), site((f"language={language}",)))
    assert (document.dropped == "redirect") == redirect


@pytest.mark.parametrize(
    "title",
    [
        ("de", "Einzelnachweise"),
        ("de", "Weblinks"),
        ("fr", "Voir aussi"),
        ("sv", "Källor"),
        ("nl", "Bronnen"),
        ("es", "Véase también"),
        ("ru", "Примечания"),
        ("it", "Note"),
        ("pl", "Przypisy"),
        ("ja", "脚注"),
        ("zh", "參考文獻"),
        ("uk", "Примітки"),
        ("ar", "مراجع"),
        ("pt", "Ligações externas"),
        ("fa", "منابع"),
        ("ca", "Fonts"),
        ("ko", "각주"),
        ("tr", "Kaynakça"),
        ("fi", "Lähteet"),
        ("hu", "Jegyzetek"),
        ("he", "הערות שוליים"),
        ("th", "อ้างอิง"),
        ("nb", "Referanser"),
        ("ltg", "Atsaucis"),
        ("hi", "सन्दर्भ"),
    ],
)
def test_sections_without_prose(title: tuple[str, str]) -> None:
    language, heading = title
    text = f"Before.{TAIL}\n\n== {heading} ==\nThese words are in a section that is left out."
    assert clean_wikitext(text, site((f"language={language}",))) == "Before." + TAIL


@pytest.mark.parametrize(
    ("language", "heading"),
    [
        ("de", "<h2>Weblinks</h2>"),
        ("de", '<h2 id="a"><span>Weblinks</span></h2>'),
        ("de", "== Weblinks und Literatur =="),
        ("de", "== Literatur, Quellen & Weblinks =="),
        ("fr", "== Notes et liens externes =="),
        ("ar", "== المراجع والمصادر =="),
        ("ja", "== 注釈と出典 =="),
        ("nb", "== Kilder og noter =="),
    ],
)
def test_sections_without_prose_in_other_words(language: str, heading: str) -> None:
    after = "\n\n== Leben und Literatur ==\nThese words are kept, as their title is of a life."
    text = f"Before.{TAIL}\n\n{heading}\nThese words are in a section that is left out.{after}"
    if heading.startswith("<h2>"):
        text = text.replace("== Leben und Literatur ==", "<H2>Leben</H2>")
    kept = "These words are kept, as their title is of a life."
    found = clean_wikitext(text, site((f"language={language}",)))
    assert found == f"Before.{TAIL}\n{kept}"


def test_sections_are_listed_for_the_largest_wikipedias() -> None:
    import yaml

    path = Path(generate_names.__file__).with_name("sections.yaml")
    sections = yaml.safe_load(path.read_text("utf-8"))
    largest = word_set(
        "en ceb de fr sv nl es ru it pl arz zh ja uk vi war ar pt fa ca id ko sr no ce tr fi cs hu "
        "tt ro sh eu ms he eo hy da bg cy zh-min-nan azb simple sk et kk be el hr lt gl az ur sl"
    )
    assert len(largest) >= 40 and largest <= set(sections)
    assert all(len(titles) >= 3 and all(titles) for titles in sections.values())
    # A short word of one language is a title of prose in another.
    assert "fonts" in skipped_sections("ca") and "fonts" not in skipped_sections("en")


@pytest.mark.parametrize(
    "switch", ["__NOTOC__", "__БЕЗ_ОГЛАВЛЕНИЯ__", "__目次非表示__", "__KEININHALTSVERZEICHNIS__"]
)
def test_switches_of_all_languages_are_removed(switch: str) -> None:
    assert clean_wikitext(f"{switch} Text of the page.{TAIL}") == f"Text of the page.{TAIL}"


def test_text_that_resembles_a_switch_is_kept() -> None:
    text = f"The method __init__ and the macro __FILE__ are known.{TAIL}"
    assert clean_wikitext(text) == text


def test_the_table_contains_known_names_of_mediawiki() -> None:
    assert {"de", "zh-min-nan", "simple", "ltg", "nds-nl", "be-tarask"} <= language_codes()
    assert not {"csi", "re", "ufc", "sos", "xxx", "iso"} & language_codes()
    assert {"redirect", "weiterleitung", "перенаправление", "重定向", "転送"} <= foreign_redirects()
    assert "datei" in site(("language=de",)).files and "datei" not in site().files
    assert "datei" in site(("language=bar",)).files  # Bavarian falls back to German


PHP = r"""<?php
/** 'NS_FILE' => 'not this' */
$fallback = 'xa, xb';
$namespaceNames = [
	NS_MEDIA => 'Gogo', # 'comment'
	NS_TALK => 'It\'s_talk',
	NS_PROJECT_TALK => '$1_x',
	NS_FILE => "Pilt",
	NS_CATEGORY => 'Lade',
];
$namespaceAliases = array( 'Vana' => NS_FILE, );
$namespaceGenderAliases = [ NS_USER => [ 'male' => 'Er', 'female' => 'Sie' ] ];
$magicWords = [
	'redirect'      => [ '0', '#GEH', '#REDIRECT' ],
	'notoc'         => [ '0', '__KEIN__' ],
	'img_thumbnail' => [ '1', 'klein=$1', 'mini' ],
	'pagename'      => [ '1', 'NAME' ],
	'other'         => [ '1', 'x' ],
];
$other = [ 'NS_FILE' => 'no' ];
"""


def test_the_generator_reads_a_release(tmp_path: Path) -> None:
    messages = tmp_path / "languages" / "messages"
    data = tmp_path / "includes" / "languages" / "data"
    for folder in (messages, data):
        folder.mkdir(parents=True)
    (messages / "MessagesXx_yy.php").write_text(PHP, "utf-8")
    names = "class Names { public static $names = [ 'aa' => 'Afar', # x\n 'xx-yy' => 'X' ]; }"
    (data / "Names.php").write_text(names.replace("public", "\n\tpublic"), "utf-8")
    (tmp_path / "includes" / "Defines.php").write_text("define( 'MW_VERSION', '1.2.3' );")
    out = tmp_path / "names.json"
    assert generate_names.main([str(tmp_path), "--out", str(out)]) == 0
    found = generate_names.read_names(tmp_path)
    assert found["mediawiki"] == "1.2.3"
    assert {"aa", "xx-yy", "simple"} <= set(found["languages"])
    assert found["namespaces"] == {
        "xx-yy": {
            "file": ["gogo", "pilt", "vana"],
            "category": ["lade"],
            "other": ["er", "it's talk", "sie"],
        }
    }
    assert found["fallbacks"] == {"xx-yy": ["xa", "xb"]}
    assert found["redirects"] == {"xx-yy": ["geh", "redirect"]}
    assert found["switches"] == ["__kein__"]
    assert (found["file_options"], found["words"]) == (["klein", "mini"], {"pagename": ["name"]})


def test_the_generator_refuses_another_folder(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        generate_names.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "no languages/messages/Messages*.php found" in capsys.readouterr().err
