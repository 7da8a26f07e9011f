"""A shard that holds a single document: the fault that mislabels pairs elsewhere."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary_file import read_vocabulary
from bertds.system.run_command import guarded
from data_prep.build_wiki_books import main

DIGITS = "0123456789"


@pytest.fixture
def text(tmp_path: Path, made: SimpleNamespace) -> Path:
    """Six documents of about 2,000 tokens; each has its own digit behind every word."""
    rng = random.Random(6)
    documents = []
    for digit in DIGITS[:6]:
        lines = [made.sentence(rng).replace(" ", f" {digit} ") for _ in range(80)]
        documents.append("\n".join(lines))
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    return path


def test_pairs_are_drawn_across_shards_of_one_document_each(
    tmp_path: Path, text: Path, vocab: Path
) -> None:
    out = tmp_path / "out"
    assert (
        main(
            [
                "--text",
                str(text),
                "--vocab",
                str(vocab),
                "--out",
                str(out),
                "--workers",
                "1",
                "--shard-tokens",
                "1000",
                "--validation-fraction",
                "0",
                "--instances",
                "64:10",
                "--dupe-factor",
                "3",
                "--compression",
                "none",
            ]
        )
        == 0
    )
    manifest = Manifest.load(out)
    assert [shard.documents for shard in manifest.splits["train"].shards] == [1] * 6
    tokens = read_vocabulary(vocab)
    digits = {tokens.index(digit): digit for digit in DIGITS}
    labels = []
    for entry in manifest.instances[0]["files"]:
        with h5py.File(out / entry["file"]) as file:
            data = {name: file[name][...] for name in file}
        for row, label in enumerate(data["next_sentence_labels"].tolist()):
            ids, positions = data["input_ids"][row], data["masked_lm_positions"][row]
            count = int(np.count_nonzero(positions))
            ids[positions[:count]] = data["masked_lm_ids"][row][:count]
            segments, real = data["segment_ids"][row], data["input_mask"][row] == 1
            first = {digits[i] for i in ids[real & (segments == 0)].tolist() if i in digits}
            second = {digits[i] for i in ids[real & (segments == 1)].tolist() if i in digits}
            assert len(first) <= 1 and len(second) <= 1
            if first and second:
                assert (first == second) == (label == 0)
                labels.append(label)
    assert len(labels) > 300 and 0.3 < np.mean(labels) < 0.7


def test_a_corpus_of_one_document_is_refused_when_pairs_are_asked_for(
    tmp_path: Path, text: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.txt"
    alone.write_text(text.read_text().split("\n\n")[0])
    out = tmp_path / "out"
    given = [
        "--text",
        str(alone),
        "--vocab",
        str(vocab),
        "--out",
        str(out),
        "--workers",
        "1",
        "--validation-fraction",
        "0",
        "--instances",
        "64:10",
    ]
    assert guarded(main, given) == 2
    assert "single document" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    assert guarded(main, [*given, "--pairs", "none", "--overwrite"]) == 0  # no pair, no partner
