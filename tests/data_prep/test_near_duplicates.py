from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from bertds.errors import ConfigError
from data_prep.build_wiki_books import main
from data_prep.request import PrepRequest
from data_prep.resolve import minhash_settings
from data_prep.selection import minhash
from data_prep.selection.minhash import MinHashSettings, band_hashes
from data_prep.selection.words import ngram_hashes, normalised, word_hashes
from data_prep.stages import near_duplicates


def candidate_probability(settings: MinHashSettings, similarity: float) -> float:
    """Return how probably two texts of this Jaccard similarity are taken for duplicates."""
    return 1 - (1 - similarity**settings.rows) ** settings.bands


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def damaged(rng: random.Random, text: str, share: float) -> str:
    return " ".join("other" if rng.random() < share else w for w in text.split())


def test_words_are_compared_without_case_punctuation_and_spacing() -> None:
    assert normalised("The  CAT's\n“dog”—it_self, 3.5%!") == "the cat s dog it self 3 5"
    assert normalised("東京タワー is 1.") == "東 京 タ ワ ー is 1"
    a, b = word_hashes("One, two; THREE four"), word_hashes("one two three -- FOUR!")
    assert np.array_equal(a, b) and len(set(a.tolist())) == 4
    assert len(ngram_hashes(a, 3)) == 2 and len(ngram_hashes(a, 5)) == 0
    assert ngram_hashes(a, 2)[0] != ngram_hashes(a[[1, 0]], 2)[0]


def test_equal_minima_estimate_the_jaccard_similarity(made: SimpleNamespace) -> None:
    rng = random.Random(2)
    flips, factors = minhash._orders(4000)

    def minima(text: str) -> np.ndarray:
        out = np.full(4000, np.uint64(2**64 - 1), np.uint64)
        minhash._minima(ngram_hashes(word_hashes(text), 5), flips, factors, out)
        return out

    for share in (0.01, 0.05, 0.1):
        text = made.article(rng, 12)
        other = damaged(rng, text, share)
        # Four standard deviations of a mean of 4,000 draws.
        estimate = (minima(text) == minima(other)).mean()
        assert estimate == pytest.approx(jaccard(text, other), abs=0.032)


def test_candidates_are_as_frequent_as_the_formula_says(made: SimpleNamespace) -> None:
    settings = MinHashSettings(bands=4, rows=3)
    rng = random.Random(6)
    found, expected = [], []
    for _ in range(250):
        text = made.article(rng, 6)
        other = damaged(rng, text, 0.07)
        found.append((band_hashes(text, settings) == band_hashes(other, settings)).any())
        expected.append(candidate_probability(settings, jaccard(text, other)))
    assert 0.3 < np.mean(expected) < 0.9
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.1)


@pytest.fixture(scope="module")
def texts(made: SimpleNamespace) -> list[str]:
    """Forty texts, eight of which are there in three more, slightly changed forms."""
    rng = random.Random(3)
    texts = [made.article(rng, 4).replace("\n\n", " ") for _ in range(40)]
    return texts + [one_word_else(t, share) for t in texts[:8] for share in (0.2, 0.5, 0.8)]


def one_word_else(text: str, at: float) -> str:
    words = text.split()
    words[int(at * len(words))] = "another"
    return " ".join(words)


def clusters(texts: list[str], least: float) -> list[set[int]]:
    """Connected components over all pairs, by brute force."""
    groups = [{i} for i in range(len(texts))]
    for i, j in itertools.combinations(range(len(texts)), 2):
        a, b = (next(g for g in groups if n in g) for n in (i, j))
        if a is not b and jaccard(texts[i], texts[j]) >= least:
            groups.remove(b)
            a |= b
    return groups


def prepare(texts: list[str], vocab: Path, folder: Path, *more: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("\n\n".join(texts))
    files = ["--text", str(folder / "a.txt"), "--out", str(folder / "out"), "--vocab", str(vocab)]
    settings = ["--workers", "1", "--validation-fraction", "0.05", "--dedup", "minhash"]
    assert main([*files, *settings, *more]) == 0
    return folder / "out"


@pytest.mark.parametrize("name", ["bands", "rows", "ngram"])
def test_minhash_settings_require_dedup_minhash(name: str) -> None:
    changed = PrepRequest(out="o", train_vocab=300, **{f"minhash_{name}": 3})
    with pytest.raises(ConfigError, match=f"--minhash-{name} requires --dedup minhash"):
        minhash_settings(changed)
    asked = minhash_settings(replace(changed, dedup="minhash"))
    assert asked == replace(MinHashSettings(), **{name: 3})
    assert (
        minhash_settings(PrepRequest(out="o", train_vocab=300, minhash_bands=14))
        == MinHashSettings()
    )


def test_one_of_each_group_stays_and_the_others_are_counted(
    texts: list[str], vocab: Path, tmp_path: Path, made: SimpleNamespace
) -> None:
    groups = clusters(texts, 0.8)
    assert Counter(map(len, groups)) == {1: 32, 4: 8}  # no pair is near the threshold
    both = [*texts, texts[0], texts[20]]
    out = prepare(both, vocab, tmp_path / "one", "--keep-dropped")
    manifest = Manifest.load(out)
    assert manifest.documents == {
        "read": 66,
        "written": 40,
        "dropped": {"duplicate": 2, "near_duplicate": 24},
    }
    lines = (out / "dropped" / "near_duplicate.jsonl").read_text().splitlines()
    gone = [json.loads(line)["text"] for line in lines]
    # Of each group all but one are gone, and the one that stays is the longest (or as long).
    for group in groups:
        stays = [texts[i] for i in group if texts[i] not in gone]
        assert len(stays) == 1
    # The order of the documents leaves no trace. (Workers: test_dropped.py.)
    shuffled = random.Random(1).sample(both, len(both))
    other = prepare(shuffled, vocab, tmp_path / "two", "--keep-dropped")
    for name, value in made.tree(out).items():
        if name.endswith(".h5"):
            assert made.tree(other)[name] == value
    # Held-out documents have no near-duplicate in training.
    for split in manifest.splits.values():
        assert sum(i.documents for i in split.shards) == split.documents


def test_many_ranges_find_the_same(
    texts: list[str],
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    once = made.tree(prepare(texts, vocab, tmp_path / "once"))
    monkeypatch.setattr(near_duplicates, "DOCUMENTS_AT_ONCE", 25)
    assert made.tree(prepare(texts, vocab, tmp_path / "often")) == once


def test_dedup_none_keeps_equal_texts_in_the_same_split(
    texts: list[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:30] * 3))
    out = tmp_path / "out"
    command = ["--text", str(tmp_path / "a.txt"), "--out", str(out), "--vocab", str(vocab)]
    more = ["--workers", "1", "--dedup", "none", "--validation-fraction", "0.1"]
    assert main([*command, *more]) == 0
    manifest = Manifest.load(out)
    assert manifest.documents == {"read": 90, "written": 90, "dropped": {}}
    held = manifest.splits["validation"].shards[0]
    shard = TokenShard.open(out / held.file, held)
    assert held.documents % 3 == 0 and shard.documents == held.documents
