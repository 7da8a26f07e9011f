from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from bertds.errors import ConfigError
from data_prep.build_wiki_books import main
from data_prep.selection.mixing import entries, parse_mix
from data_prep.stages.tokenise import content_key


def documents(out: Path) -> dict[str, Counter[tuple[int, ...]]]:
    """Each split's documents, as their tokens, with the number of times that they are there."""
    found = {}
    for name, split in Manifest.load(out).splits.items():
        own: Counter[tuple[int, ...]] = Counter()
        for info in split.shards:
            shard = TokenShard.open(out / info.file, info)
            for first, last in zip(shard.document_offsets[:-1], shard.document_offsets[1:]):
                tokens = shard.token_ids[
                    shard.sentence_offsets[first] : shard.sentence_offsets[last]
                ]
                own[tuple(tokens.tolist())] += 1
        found[name] = own
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> list[str]:
    """Two sources of 150 documents, of which 20 are in both, and 10 twice in the second."""
    rng = random.Random(5)
    folder = tmp_path_factory.mktemp("sources")
    first = [made.article(rng, 1) for _ in range(150)]
    second = [*[made.article(rng, 1) for _ in range(120)], *first[:20]]
    second += second[:10]
    (folder / "a.txt").write_text("\n\n".join(first))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in second))
    return ["--text", str(folder / "a.txt"), "--jsonl", str(folder / "b.jsonl")]


def prepare(sources: list[str], vocab: Path, out: Path, *more: str) -> Path:
    settings = ["--workers", "1", "--validation-fraction", "0.1", "--shard-tokens", "1500"]
    command = [*sources, "--out", str(out), "--vocab", str(vocab), *settings, *more]
    assert main(command) == 0
    return out


def test_each_document_enters_as_often_as_its_weight_says(
    sources: list[str], vocab: Path, tmp_path: Path
) -> None:
    plain = documents(prepare(sources, vocab, tmp_path / "plain"))
    out = prepare(sources, vocab, tmp_path / "mixed", "--mix", "text=1,jsonl=3")
    mixed = documents(out)
    # Held-out documents: the same ones, once each, and none of them in training.
    assert mixed["validation"] == plain["validation"]
    assert set(mixed["validation"].values()) == {1}
    assert not set(mixed["validation"]) & set(mixed["train"])
    assert set(mixed["train"]) == set(plain["train"])
    times = Counter(mixed["train"].values())
    assert set(times) == {1, 3}
    # 120 of the second source alone and 20 of both enter three times, but for those held out.
    manifest = Manifest.load(out)
    text, jsonl = manifest.sources
    held_out = len(mixed["validation"])
    assert times[1] + times[3] + held_out == 270
    assert 120 <= times[3] <= 140
    assert (text["weight"], jsonl["weight"]) == (1.0, 3.0)
    assert jsonl["dropped"] == {"duplicate": 30} and jsonl["documents_written"] == 120
    assert text["documents_repeated"] == 0 and jsonl["documents_repeated"] == 2 * times[3]
    assert manifest.documents["read"] == 300 and manifest.documents["written"] == 270
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    assert train.documents + validation.documents == 270 + manifest.documents["repeated"]
    # A repetition is elsewhere: seldom next to its document.
    assert len(train.shards) > 5


def test_fractions_are_drawn_by_the_text_and_keep_what_smaller_ones_kept(
    sources: list[str], vocab: Path, tmp_path: Path
) -> None:
    seen = []
    for weight in ("0.4", "0.7", "1.5"):
        out = prepare(sources, vocab, tmp_path / weight, "--mix", f"text={weight}")
        manifest = Manifest.load(out)
        text = manifest.sources[0]
        assert text["documents_read"] == 150
        left_out = text["dropped"].get("left_out_by_mix", 0)
        if weight == "1.5":
            assert left_out == 0 and 0.35 * 150 < text["documents_repeated"] < 0.65 * 150
        else:
            # Binomial(150, weight), four standard deviations.
            assert abs(150 - left_out - float(weight) * 150) < 25
        both = documents(out)
        seen.append(set(both["train"]) | set(both["validation"]))
    assert seen[0] < seen[1] < seen[2]


def test_expected_entries_are_the_weight() -> None:
    keys = [content_key([f"Document {i}."], 1) for i in range(4000)]
    for weight in (0.25, 1.0, 2.6):
        mean = sum(entries(key, weight) for key in keys) / len(keys)
        assert mean == pytest.approx(weight, abs=0.03)


def test_mix_is_read_or_refused() -> None:
    names = ["wiki", "hf:a/b:c", "hf:d"]
    assert parse_mix("hf:a/b:c=2,wiki=1", names) == (("hf:a/b:c", 2.0),)
    assert parse_mix("hf=0.5", names) == (("hf:a/b:c", 0.5), ("hf:d", 0.5))
    assert parse_mix("", names) == ()
    for text, message in (
        ("books=2", "no such source; the sources are: wiki, hf:a/b:c, hf:d"),
        ("wiki", "expected SOURCE=WEIGHT"),
        ("wiki=0", "above 0"),
        ("wiki=nan", "above 0"),
        ("wiki=2,wiki=3", "wiki is given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_mix(text, names)
