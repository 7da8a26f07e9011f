from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertds.data.vocabulary_file import read_vocabulary
from data_prep.tokens.wordpiece import WordPieceEncoder
from data_prep.tokens.wordpiece_tables import new_cache


@pytest.fixture(scope="module", params=["uncased", "cased"])
def pair(request: pytest.FixtureRequest, shared_data: Path):
    """Ours, and transformers' fast tokenizer of the original vocabularies."""
    from tokenizers import BertWordPieceTokenizer

    file = shared_data / "vocab" / f"bert-base-{request.param}-vocab.txt"
    lower = request.param == "uncased"
    theirs = BertWordPieceTokenizer(str(file), lowercase=lower)
    theirs._tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    return WordPieceEncoder(read_vocabulary(file), lower, cache_entries=1 << 12), theirs


def check(pair, sentences: list[str]) -> None:
    ours, theirs = pair
    expected = [theirs.encode(s, add_special_tokens=False).ids for s in sentences]
    ids, lengths = ours.encode(sentences)
    assert lengths.tolist() == [len(e) for e in expected]
    assert ids.tolist() == [i for e in expected for i in e]


ODD = (
    "\x00\x01\t\n\x0b\x0c\r\x1c\x1f \x7f\x85\xa0\xad\u1680\u180e\u2000\u200b\u200d\u2028\u2029"
    "\u202f\u205f\u3000\ufeff\ufffd\ue000\U000e0001\u0301\u0345\u0130\u0131\u00df\u1e9e\u03a3\u03c2\u01c5"
    "\ufb01\u212b\u1100\uac00漢字かなカナ㐀\U00020000\uf900한글éÉñÑ°€™½²“”‘’–—…!#$%&'()*+,-./:;<=>?@[]^_`{|}~"
)
characters = st.one_of(
    st.sampled_from(ODD), st.sampled_from("abcXYZ 019.,-'"), st.characters(codec="utf-8")
)
texts = st.text(characters, max_size=40)


@settings(max_examples=400)
@given(st.lists(texts, max_size=6))
@example(["[MASK] [SEP] [unused1] ##ing"])
@example(["a" * 100, "a" * 101, "é" * 100, "é" * 101, "A" * 99 + "é"])
@example(["ΟΔΥΣΣΕΥΣ ΣΑΣ", "İstanbul DİYARBAKIR ıI", "ǅ ﬁ Å"])
@example(["漢字abc漢", "12:30-4.5e6", "don't can''t", "x\x1cy \x0b z\x85w"])
def test_ids_equal_those_of_tokenizers(pair, sentences: list[str]) -> None:
    check(pair, sentences)


@settings(max_examples=60)
@given(
    st.lists(st.text(st.sampled_from("abcABCé漢.- \u0301"), min_size=60, max_size=300), max_size=4)
)
def test_long_words_equal_too(pair, sentences: list[str]) -> None:
    check(pair, sentences)


def test_every_assigned_character_alone_and_between_letters(pair) -> None:
    assigned = [
        chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")
    ]
    step = 7  # every seventh, all scripts
    check(pair, [f"{c} a{c}b" for c in assigned[::step]])


def test_every_character_of_two_bytes_next_to_itself_and_letters(pair) -> None:
    every = [chr(c) for c in range(0x80, 0x800)]
    check(pair, [f"{c}a{c}{c}B 1{c} {c}" for c in every])
    check(pair, ["".join(every[i : i + 9]) for i in range(0, len(every), 9)])


def test_words_of_european_scripts_use_the_fast_path(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair
    texts = ["Überraschungen Łódź œuvre", "ΟΔΥΣΣΕΥΣ", "Москва"]
    check(pair, texts)
    fresh = WordPieceEncoder.__new__(WordPieceEncoder)
    fresh.__dict__.update(ours.__dict__, _cache=new_cache(1 << 12))
    monkeypatch.setattr(fresh, "exact_tokenizer", None)
    assert fresh.encode(texts)[0].tolist() == ours.encode(texts)[0].tolist()
    with pytest.raises(AttributeError):
        fresh.encode(["東京タワー"])


def test_real_text_in_batches_with_a_small_cache(pair, shared_data: Path) -> None:
    text = (shared_data / "wikipedia" / "extracted-mlperf" / "wiki_00").read_text()
    check(pair, text[:300_000].split("\n"))


def test_giant_chunks_without_spaces(pair) -> None:
    ours, theirs = pair
    text = "漢字,word-" * 30_000
    ids, lengths = ours.encode([text])
    expected = theirs.encode(text[:9000], add_special_tokens=False).ids
    assert ids[:5000].tolist() == expected[:5000] and lengths.tolist() == [len(ids)]
    assert ours.encode(["x" * 5_000_000])[0].tolist() == [theirs.token_to_id("[UNK]")]


def test_no_sentences_and_empty_ones(pair) -> None:
    ours, _ = pair
    assert ours.encode([])[1].tolist() == []
    assert ours.encode(["", "  ", "a", ""])[1].tolist() == [0, 0, 1, 0]


def test_the_cache_is_bounded(pair) -> None:
    ours, theirs = pair
    for start in range(0, 20_000, 500):
        numbers = " ".join(f"w{i}" for i in range(start, start + 500))
        ids = ours.encode([numbers, "é" + numbers])[0]
        assert max(ours._cache.used[:2]) <= 1 << 12 and len(ours._cache.ids) <= 8 << 12
    again = theirs.encode(numbers, add_special_tokens=False).ids
    assert ids[: len(again)].tolist() == again
    assert ids.dtype == np.uint16
