"""The options of instance files, read with h5py alone and held against the dump's text."""

from __future__ import annotations

import bz2
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from bertds.data.vocabulary_file import read_vocabulary
from data_prep.build_wiki_books import main

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def source(wiki_dump: Path) -> str:
    """The dump's text in lower case without spaces and markup."""
    text = bz2.decompress(wiki_dump.read_bytes()).decode()
    return re.sub(r"\s+", "", text.replace("'''", "").lower())


def rows(wiki: Path, vocab: Path, out: Path, *more: str) -> dict[str, np.ndarray]:
    command = [
        "--wiki",
        str(wiki),
        "--out",
        str(out),
        "--vocab",
        str(vocab),
        "--workers",
        "1",
        "--validation-fraction",
        "0",
        "--instances",
        "64:10",
        "--dupe-factor",
        "2",
        "--compression",
        "none",
        "--short-seq-prob",
        "0",
        *more,
    ]
    assert main(command) == 0
    files = sorted(out.glob("hdf5_*/*/*_training_*.hdf5"))
    assert files
    columns: dict[str, list[np.ndarray]] = {}
    for file in files:
        with h5py.File(file) as data:
            for name in data:
                columns.setdefault(name, []).append(data[name][:])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def whole_row(data: dict[str, np.ndarray], row: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's ids before masking, without padding; and its masked positions."""
    length = int(data["input_mask"][row].sum())
    count = int((data["masked_lm_positions"][row] > 0).sum())
    ids = data["input_ids"][row][:length].copy()
    positions = data["masked_lm_positions"][row][:count]
    ids[positions] = data["masked_lm_ids"][row][:count]
    return ids, positions


def letters(tokens: list[str], ids: np.ndarray) -> str:
    return "".join(tokens[i].removeprefix("##") for i in ids)


def test_without_pairs_a_row_is_one_stretch_of_a_document(
    wiki_dump: Path, vocab: Path, tmp_path: Path, source: str
) -> None:
    tokens = read_vocabulary(vocab)
    data = rows(wiki_dump, vocab, tmp_path / "o", "--pairs", "none")
    full = 0
    for row in range(len(data["input_ids"])):
        ids, _ = whole_row(data, row)
        assert ids[0] == CLS and ids[-1] == SEP and (ids == SEP).sum() == 1
        assert letters(tokens, ids[1:-1]) in source
        full += len(ids) == 64
    assert full > 0.5 * len(data["input_ids"])
    assert not data["segment_ids"].any() and "next_sentence_labels" not in data


def test_sentence_order_has_the_two_halves_of_one_stretch_as_they_are_or_swapped(
    wiki_dump: Path, vocab: Path, tmp_path: Path, source: str
) -> None:
    tokens = read_vocabulary(vocab)
    data = rows(wiki_dump, vocab, tmp_path / "o", "--pairs", "sop")
    checked = [0, 0]
    for row in range(len(data["input_ids"])):
        ids, _ = whole_row(data, row)
        first, last = np.flatnonzero(ids == SEP)
        a, b = letters(tokens, ids[1:first]), letters(tokens, ids[first + 1 : last])
        label = int(data["next_sentence_labels"][row])
        if len(ids) < 64:  # nothing was cut away between the two
            assert (b + a if label else a + b) in source
            checked[label] += 1
    assert min(checked) > 20
    assert 0.4 < data["next_sentence_labels"].mean() < 0.6


@pytest.mark.parametrize("ngram", [1, 3])
def test_words_and_runs_of_words_are_masked_as_a_whole(
    wiki_dump: Path, vocab: Path, tmp_path: Path, ngram: int
) -> None:
    tokens = read_vocabulary(vocab)
    # Of 100 words that every text has, drop some from the vocabulary, so that words have pieces.
    known = [t for t in tokens if len(t) < 4 or t[0] in "[#"]
    (tmp_path / "vocab.txt").write_text("\n".join(known) + "\n")
    tokens = known
    data = rows(
        wiki_dump,
        tmp_path / "vocab.txt",
        tmp_path / "o",
        "--whole-word-masking",
        "--ngram",
        str(ngram),
    )
    neighbours = together = pieces = 0
    for row in range(len(data["input_ids"])):
        ids, positions = whole_row(data, row)
        chosen = np.zeros(len(ids), bool)
        chosen[positions] = True
        assert len(positions) <= min(10, max(1, round(0.15 * len(ids))))
        for at in range(2, len(ids)):
            if tokens[ids[at]].startswith("##") and ids[at - 1] not in (CLS, SEP):
                assert chosen[at] == chosen[at - 1]
                pieces += chosen[at]
            elif chosen[at]:
                neighbours += 1
                together += chosen[at - 1]
    assert pieces > 100
    share = together / neighbours
    assert share > 0.25 if ngram == 3 else share < 0.25
