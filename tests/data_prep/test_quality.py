from __future__ import annotations

import random
from pathlib import Path

import pytest

from bertds.errors import ConfigError
from data_prep.document import CONTAMINATED, TOO_LONG, TOO_SHORT
from data_prep.selection.filters import FilterSettings, document_filter
from data_prep.selection.quality import c4, gopher
from data_prep.selection.repetition import repetition
from data_prep.sources import READERS, file_units, find_files
from data_prep.tokens.sentences import sentence_splitter

SPLIT = sentence_splitter("en")

PROSE = (
    "The school was founded in the first years of the century and has been the home of many "
    "people that have worked with the state to make the city a better place for all of them. "
    "It was the only one of its kind until the war, when most of the buildings were lost. "
    "After that they were made new, and the students came back to it from all over the world."
)


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    """Real articles and abstracts, and the same with faults put into them."""
    files = find_files("wiki", [str(shared_data / "wikipedia" / "extracted-mlperf")], ())
    files += find_files("pubmed", [str(shared_data / "biomedical")], ())[:1]
    real = [
        document.text
        for file in files
        for unit in file_units(file, 1 << 22)
        for document in READERS[unit.reader](unit)
        if document.text
    ][:160]
    rng = random.Random(4)
    broken = []
    for text in real:
        words = text.split(" ")
        fault = rng.randrange(9)
        if fault == 0:  # a stretch again and again
            start = rng.randrange(len(words))
            words += words[start : start + rng.randint(3, 12)] * rng.randint(2, 40)
        elif fault == 1:
            words = [w + "..." if rng.random() < 0.15 else w for w in words]
        elif fault == 2:
            words = ["#" + w if rng.random() < 0.12 else w for w in words]
        elif fault == 3:
            words = [str(rng.randrange(9999)) if rng.random() < 0.22 else w for w in words]
        elif fault == 4:
            words = words[: rng.randint(1, 80)]
        elif fault == 5:
            words = [w for w in words if w not in ("the", "of", "and", "to", "that")]
        elif fault == 6:
            words = [w * 2 if rng.random() < 0.8 else w for w in words]
        broken.append(" ".join(words))
        if fault == 7:  # lines again and again, and lines without an end
            lines = text.split("\n")
            broken[-1] = "\n".join(rng.choices(lines, k=2 * len(lines)) + ["- item", "• item"])
        elif fault == 8:
            broken[-1] = "\n".join(f"- {s} ..." if rng.random() < 0.6 else s for s in SPLIT(text))
    return real + broken


# Ours and datatrove's names for one rule.
GOPHER = {
    "gopher_short_doc": "gopher_short",
    "gopher_long_doc": "gopher_long",
    "gopher_below_avg_threshold": "gopher_word_length",
    "gopher_above_avg_threshold": "gopher_word_length",
    "gopher_too_many_hashes": "gopher_symbols",
    "gopher_too_many_ellipsis": "gopher_symbols",
    "gopher_too_many_bullets": "gopher_bullets",
    "gopher_too_many_end_ellipsis": "gopher_ellipses",
    "gopher_below_alpha_threshold": "gopher_letters",
    "gopher_enough_stop_words": "gopher_stop_words",
}


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch):
    """datatrove's filters, with our words and sentences in the place of spaCy's and NLTK's."""
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters, gopher_quality_filter
    from datatrove.pipeline.filters import gopher_repetition_filter as repetition_filter

    for module in (gopher_quality_filter, repetition_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, _: text.split())
    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, _: SPLIT(text))
    filters = {
        "gopher": gopher_quality_filter.GopherQualityFilter(),
        "repetition": repetition_filter.GopherRepetitionFilter(),
        "c4": c4_filters.C4QualityFilter(),
    }

    def run(name: str, text: str) -> tuple[str, str]:
        document = Document(text=text, id="0")
        result = filters[name].filter(document)
        return document.text, "" if result is True else result[1]

    return run


def test_gopher_rules_agree_with_datatrove(texts: list[str], peer) -> None:
    reasons = set()
    for text in texts:
        expected = peer("gopher", text)[1]
        assert gopher(text) == GOPHER.get(expected, ""), text[:300]
        reasons.add(expected)
    assert len(reasons) >= 7, reasons


def test_repetition_rules_agree_with_datatrove(texts: list[str], peer) -> None:
    names = {f"top_{n}_gram": f"repetition_top_{n}_gram" for n in (2, 3, 4)}
    names |= {f"duplicated_{n}_n_grams": f"repetition_{n}_gram" for n in range(5, 11)}
    names |= {"dup_line_frac": "repetition_lines"}
    names |= {"dup_line_char_frac": "repetition_line_characters"}
    reasons = set()
    for text in texts:
        expected = peer("repetition", text)[1]
        assert repetition(text) == names.get(expected, ""), text[:300]
        reasons.add(expected)
    assert len(reasons) >= 5, reasons


def test_c4_rules_agree_with_datatrove(texts: list[str], peer) -> None:
    names = {"too_few_sentences": "c4_few_sentences", "curly_bracket": "c4_curly_bracket"}
    names |= {"lorem_ipsum": "c4_lorem_ipsum"}
    rng = random.Random(3)
    additions = [
        "Lorem ipsum dolor sit amet.",
        "Turn on JavaScript to see it.",
        "a { b } c d.",
        "Read the terms of use here.",
        "No end",
        "Two words.",
        "x" * 1001,
    ]
    reasons = set()
    for text in texts:
        text = text.replace("”", '"').replace("’", "'")  # ends of lines that only we accept
        lines = [*text.split("\n"), rng.choice(additions)]
        text = "\n".join(rng.sample(lines, len(lines)))
        kept, expected = peer("c4", text)
        found, reason = c4(text, SPLIT)
        assert reason == names.get(expected, "")
        assert reason or found == kept
        reasons.add(reason)
    assert len(reasons) == 4, reasons


def test_good_prose_passes_all_rules_and_bad_prose_names_its_fault() -> None:
    assert gopher(PROSE) == repetition(PROSE) == ""
    assert gopher("Short.") == "gopher_short"
    assert gopher("12 34 # 56 " * 40) == "gopher_word_length"
    assert repetition(PROSE + "\n" + "Buy it now here.\n" * 30) == "repetition_lines"
    assert c4(PROSE + "\nIt runs on { braces }.", SPLIT)[1] == "c4_curly_bracket"
    six = "\n".join(f"This is line number {i} of it." for i in range(6))
    assert c4(f"{six}\nMenu", SPLIT) == (six, "")


def test_the_filters_are_applied_in_order_and_name_reasons(tmp_path: Path) -> None:
    from data_prep.selection.decontaminate import read_test_files

    (tmp_path / "t.txt").write_text("Most of the buildings were lost in it, as we know.\n")
    _, table = read_test_files([str(tmp_path / "t.txt")], 13)
    table.save(tmp_path / "t.npy")
    settings = FilterSettings(min_words=5, max_words=100, quality=("gopher",))
    check = document_filter(settings, tmp_path / "t.npy", SPLIT)
    assert check is not None
    assert check(PROSE) == (PROSE, "")
    assert check("Too few words.")[1] == TOO_SHORT
    assert check(PROSE * 2)[1] == TOO_LONG
    assert check("Enough words for the limit, too few for Gopher.")[1] == "gopher_short"
    hit = PROSE + " MOST of the buildings -- were lost, in it as we know!"
    assert check(hit)[1] == CONTAMINATED
    assert document_filter(FilterSettings(), None, SPLIT) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_words": -1}, "--min-words -1"),
        ({"min_words": 9, "max_words": 5}, "--max-words 5 is below --min-words 9"),
        ({"language_score": 2.0}, "--language-score 2.0"),
        ({"quality": ("best",)}, "--quality best: allowed: gopher, repetition, c4"),
    ],
)
def test_impossible_filters(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilterSettings(**values)


def test_languages_are_distinguished() -> None:
    pytest.importorskip("py3langid")
    from data_prep.selection.language import check_languages, is_in

    german = "Der Vertrag wurde am ersten Tag des Jahres in der Stadt unterzeichnet. " * 12
    assert is_in(PROSE, ("en",), 0.65) and not is_in(german, ("en",), 0.65)
    assert is_in(german, ("en", "de"), 0.65)
    # The middle is looked at too: an English preface does not save a German book.
    assert not is_in(PROSE[:100] + german * 10, ("en",), 0.65)
    with pytest.raises(ConfigError, match=r"--keep-language xx: unknown language; allowed: .*en"):
        check_languages(["en", "xx"])
