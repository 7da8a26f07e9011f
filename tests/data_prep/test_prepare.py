from __future__ import annotations

import bz2
import json
import os
import random
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from bertds.data.vocabulary_file import read_vocabulary
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.earlier_run import OtherSettings
from data_prep.stages.instances import deal_blocks
from tests.support.prep_options import wiki_options

SCRIPT = "data_prep/build_wiki_books.py"


arguments = partial(
    wiki_options,
    settings="--shard-tokens 3000 --instances 64:10 --dupe-factor 3 --compression none",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, wiki_dump: Path, vocab: Path) -> Path:
    """A finished folder; do not write to it."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert main(arguments(out, wiki_dump, vocab)) == 0
    return out


@pytest.fixture(scope="module")
def source_letters(wiki_dump: Path) -> str:
    """The dump's text in lower case without spaces and markup."""
    text = bz2.decompress(wiki_dump.read_bytes()).decode()
    return re.sub(r"\s+", "", text.replace("'''", "").lower())


def letters(tokens: list[str], ids: np.ndarray) -> str:
    return "".join(tokens[i].removeprefix("##") for i in ids)


def test_the_counts_add_up(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    assert manifest.documents == {
        "read": 72,
        "written": 60,
        "dropped": {"empty": 1, "namespace": 1, "redirect": 10},
    }
    assert manifest.splits["validation"].documents == 6
    assert manifest.splits["train"].documents == 54
    assert len(manifest.splits["train"].shards) >= 3
    (source,) = manifest.sources
    assert source["name"] == "wiki" and source["licence"].startswith("CC BY-SA")
    assert [f["name"] for f in source["files"]] == ["wiki.xml.bz2"]
    assert str(prepared.parent) not in (prepared / "manifest.json").read_text()
    assert not (prepared / ".work").exists() and not (prepared / ".lock").exists()


def test_shards_hold_every_article_of_the_dump_once(
    prepared: Path, vocab: Path, source_letters: str
) -> None:
    tokens = read_vocabulary(vocab)
    manifest = Manifest.load(prepared)
    beginnings = []
    for split in manifest.splits.values():
        for info in split.shards:
            shard = TokenShard.open(prepared / info.file, info)
            for s in range(shard.sentences):
                ids = shard.token_ids[slice(*shard.sentence_offsets[s : s + 2])]
                assert letters(tokens, ids) in source_letters
            firsts = shard.sentence_offsets[shard.document_offsets[:-1]]
            beginnings += [letters(tokens, shard.token_ids[f : f + 30])[:9] for f in firsts]
    assert len(beginnings) == 60 == len(set(beginnings))
    assert all(b.startswith("article") for b in beginnings)


def test_nvidia_rows_read_by_the_reference_alone_decode_to_the_source(
    prepared: Path, vocab: Path, source_letters: str
) -> None:
    tokens = read_vocabulary(vocab)
    name = (
        "hdf5_lower_case_1_seq_len_64_max_pred_10_masked_lm_prob_0.15_random_seed_12345"
        "_dupe_factor_3"
    )
    files = sorted((prepared / name / "wikicorpus_en").iterdir())
    manifest = Manifest.load(prepared)
    assert [f"{name}/wikicorpus_en/{f.name}" for f in files] == [
        f["file"] for f in manifest.instances[0]["files"]
    ]
    assert {f.name.rsplit("_", 1)[0] for f in files} == {
        "wikicorpus_en_training",
        "wikicorpus_en_test",
    }
    random_next = []
    for file in files:
        with h5py.File(file) as rows:
            assert {k: (v.dtype.str, v.shape[1:]) for k, v in rows.items()} == {
                "input_ids": ("<i4", (64,)),
                "input_mask": ("|i1", (64,)),
                "segment_ids": ("|i1", (64,)),
                "masked_lm_positions": ("<i4", (10,)),
                "masked_lm_ids": ("<i4", (10,)),
                "next_sentence_labels": ("|i1", ()),
            }
            data = {k: v[...] for k, v in rows.items()}
        random_next += data["next_sentence_labels"].tolist()
        for row in range(len(data["input_ids"])):
            ids = data["input_ids"][row].copy()
            positions = data["masked_lm_positions"][row]
            count = int(np.argmax(positions == 0)) if (positions == 0).any() else len(positions)
            length = int(data["input_mask"][row].sum())
            assert count == min(10, max(1, round(0.15 * length)))
            ids[positions[:count]] = data["masked_lm_ids"][row][:count]
            first, second = np.flatnonzero(ids == 3)
            assert ids[0] == 2 and second == length - 1 and not ids[length:].any()
            assert data["segment_ids"][row].tolist() == [0] * (first + 1) + [1] * (
                second - first
            ) + [0] * (64 - length)
            a, b = letters(tokens, ids[1:first]), letters(tokens, ids[first + 1 : second])
            assert a in source_letters and b in source_letters
            if data["next_sentence_labels"][row] == 0 and length < 64:
                assert a + b in source_letters  # not truncated, so nothing is lost between them
    assert 0.4 < np.mean(random_next) < 0.75


def test_no_file_holds_two_passes_over_one_shard() -> None:
    for shards in (1, 2, 3, 7, 40):
        for passes in (1, 2, 5, 9):
            files = deal_blocks(shards, passes)
            assert sorted(b for f in files for b in f) == [
                (s, p) for s in range(shards) for p in range(passes)
            ]
            assert all(len({s for s, _ in f}) == len(f) for f in files)
            assert max(map(len, files)) - min(map(len, files)) <= 1


def test_workers_units_compression_and_paths_do_not_change_the_result(
    prepared: Path,
    wiki_dump: Path,
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    repository: Path,
) -> None:
    # Two processes, run by path from another folder, another hash seed: equal to the last byte.
    out = tmp_path / "two"
    command = [sys.executable, str(repository / SCRIPT), *arguments(out, wiki_dump, vocab)]
    command[command.index("--workers") + 1] = "2"
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    assert made.tree(out) == made.tree(prepared)

    # The same articles in another order, in two plain files: the same shards.
    data = bz2.decompress(wiki_dump.read_bytes()).decode()
    pages = re.findall(r"  <page>.*?</page>\n", data, re.DOTALL)
    random.Random(3).shuffle(pages)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "b.xml").write_bytes(made.dump(pages[:20]))
    (folder / "a.xml").write_bytes(made.dump(pages[20:]))
    other = tmp_path / "other"
    assert main(arguments(other, folder, vocab)) == 0
    before, after = made.tree(prepared), made.tree(other)
    for named in ("manifest.json", "report.html"):  # these report of the files
        del before[named], after[named]
    assert after == before


def test_a_trained_vocabulary_is_the_same_every_time_and_loads_in_transformers(
    tmp_path: Path, wiki_dump: Path, made: SimpleNamespace, repository: Path
) -> None:
    trees = []
    for name, workers in (("a", "1"), ("b", "2")):
        out = tmp_path / name
        given = [
            "--wiki",
            str(wiki_dump),
            "--out",
            str(out),
            "--train-vocab",
            "300",
            "--validation-fraction",
            "0.1",
            "--workers",
            workers,
        ]
        if workers == "1":
            assert main(given) == 0
        else:  # in a process of its own: hash tables have another seed there
            command = [sys.executable, str(repository / SCRIPT), *given]
            subprocess.run(command, check=True, timeout=120, capture_output=True)
        trees.append(made.tree(out))
    assert trees[0] == trees[1]

    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a" / "tokenizer")
    manifest = Manifest.load(tmp_path / "a")
    assert len(tokenizer) == manifest.tokenizer.vocab_size <= 300
    assert tokenizer.mask_token_id == manifest.tokenizer.special_ids["mask"] == 4
    text = "The state of World, this may be known."
    from data_prep.tokens.wordpiece import WordPieceEncoder

    tokens = read_vocabulary(tmp_path / "a" / "tokenizer" / "vocab.txt")
    ids = WordPieceEncoder(tokens, True).encode([text])[0].tolist()
    assert tokenizer(text)["input_ids"] == [2, *ids, 3]


def test_duplicates_are_counted_for_the_later_source(
    tmp_path: Path, vocab: Path, made: SimpleNamespace
) -> None:
    rng = random.Random(1)
    documents = [made.article(rng, 1) for _ in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    records = [{"text": d} for d in [*documents[:5], *documents[:2], made.article(rng, 1), "Hi."]]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    out = tmp_path / "out"
    main(
        [
            "--text",
            str(tmp_path / "a.txt"),
            "--jsonl",
            str(tmp_path / "b.jsonl"),
            "--out",
            str(out),
            "--vocab",
            str(vocab),
            "--workers",
            "1",
        ]
    )
    manifest = Manifest.load(out)
    text, jsonl = manifest.sources
    assert (text["documents_read"], text["documents_written"], text["dropped"]) == (20, 20, {})
    assert jsonl["dropped"] == {"duplicate": 7, "too_short": 1}
    assert jsonl["documents_written"] == 1
    assert manifest.documents["read"] == 29 and manifest.documents["written"] == 21


def test_a_finished_folder_is_left_alone_and_other_settings_refused(
    prepared: Path,
    wiki_dump: Path,
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert "already prepared" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(Exception, match=r"seed: 12345 before, 6 now.*--overwrite"):
        main(arguments(out, wiki_dump, vocab, "--seed", "6"))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    assert main(arguments(out, wiki_dump, vocab, "--seed", "6", "--overwrite")) == 0
    other = {k: v for k, v in made.tree(out).items() if k.startswith("train")}
    assert not set(other.values()) & set(made.tree(prepared).values())


def test_what_differs_from_a_finished_folder_is_named(
    tmp_path: Path, vocab: Path, made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(3)
    texts = [made.article(rng, 1).replace("\n\n", " ") for _ in range(12)]
    text, records = tmp_path / "texts" / "a.txt", tmp_path / "b.jsonl"
    text.parent.mkdir()
    text.write_text("\n\n".join(texts[:8]))
    records.write_text("".join(json.dumps({"text": t, "body": t[9:]}) + "\n" for t in texts[8:]))
    given = ["--text", str(text.parent), "--jsonl", str(records), "--workers", "1"]
    given += ["--out", str(tmp_path / "out"), "--vocab", str(vocab), "--licence", "text=MIT"]
    assert main(given) == 0
    before = made.tree(tmp_path / "out")
    # Options that decide which documents a file has.
    for more, named in (
        ("--text-layout line", "text_layout of text: blank-line before, line now"),
        ("--text-key body", "text_key of jsonl: text before, body now"),
    ):
        with pytest.raises(OtherSettings, match=f"other settings or sources \\({named}\\); choose"):
            main([*given, *more.split()])
    # A manifest of an older version does not record them, so they are not compared.
    manifest = tmp_path / "out" / "manifest.json"
    content = manifest.read_text()
    older = json.loads(content)
    for source in older["sources"]:
        source.pop("text_layout", source.pop("text_key", None))
    manifest.write_text(json.dumps(older))
    assert main([*given, "--text-layout", "line"]) == 0
    manifest.write_text(content)
    # A licence changes no shard.
    capsys.readouterr()
    assert main([*given, "--licence", "text=CC0", "--licence", "jsonl=X"]) == 0
    warned = capsys.readouterr().err
    assert "text: the manifest keeps the licence 'MIT'; to record 'CC0', change it in" in warned
    assert "jsonl: the manifest keeps the licence 'not stated'; to record 'X', change" in warned
    # Source files.
    with text.open("a") as file:
        file.write(".")
    records.rename(tmp_path / "c.jsonl")
    given[given.index(str(records))] = str(tmp_path / "c.jsonl")
    with pytest.raises(OtherSettings, match=r"changed: b\.jsonl is missing and 2 more\); choose"):
        main(given)
    (tmp_path / "c.jsonl").rename(records)
    given[given.index(str(tmp_path / "c.jsonl"))] = str(records)
    size = text.stat().st_size
    with pytest.raises(OtherSettings, match=rf"a\.txt has {size:,} bytes now, {size - 1:,} before"):
        main(given)
    assert made.tree(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "tokenizer", "rows"])
def test_lost_or_damaged_output_is_made_again(
    prepared: Path, wiki_dump: Path, vocab: Path, tmp_path: Path, made: SimpleNamespace, damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    file = out / "train" / "shard_00001.h5"
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-10] ^= 1
        file.write_bytes(data)
    elif damage == "tokenizer":
        shutil.rmtree(out / "tokenizer")
    else:
        next(out.glob("hdf5_*/*/*_training_0.hdf5")).write_bytes(b"")
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert made.tree(out) == made.tree(prepared)


@pytest.mark.parametrize("value", ["cache", "nanotoken"])
def test_a_folder_that_names_the_removed_tokeniser_is_finished_and_repaired(
    prepared: Path, wiki_dump: Path, vocab: Path, tmp_path: Path, made: SimpleNamespace, value: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["settings"]["tokeniser"] = value
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = made.tree(out)
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert made.tree(out) == before
    (out / "train" / "shard_00001.h5").unlink()
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert made.tree(out) == made.tree(prepared)


def test_a_damaged_manifest_is_refused_and_overwritten(
    tmp_path: Path, wiki_dump: Path, vocab: Path
) -> None:
    out = tmp_path / "out"
    assert main(arguments(out, wiki_dump, vocab)) == 0
    (out / "manifest.json").write_text('{"half')
    with pytest.raises(DataError, match=r"manifest\.json: damaged .*; use --overwrite"):
        main(arguments(out, wiki_dump, vocab))
    assert main(arguments(out, wiki_dump, vocab, "--overwrite")) == 0
    assert Manifest.load(out).documents["written"] == 60
