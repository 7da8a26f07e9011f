"""Tokenizers do what their files say, and what is written on says the same."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary import load_tokenizer_info
from bertds.data.vocabulary_file import read_vocabulary
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.stages.vocabulary import choose_alphabet
from data_prep.tokens.wordpiece import WordPieceEncoder
from tests.support.prepare_text import documents, prepare

GERMAN = "Er möchte das schöne Haus.\n\nEr müsste das Haus.\n\nEin Mann: das Haus.\n"
TOKENS = """[PAD] [UNK] [CLS] [SEP] [MASK] er möchte mochte das schöne schone haus . müsste musste
ein mann : 東 京 東京 ##京 Er Haus""".split()  # noqa: SIM905


def wordpiece_folder(folder: Path, files: str = "vocab.txt", **config: object) -> Path:
    """A tokenizer folder with vocab.txt, or as transformers 5 saves it."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"} | config)
    )
    if files == "tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder.with_name("saved"))
        shutil.rmtree(folder)
        folder.with_name("saved").rename(folder)
        assert not (folder / "vocab.txt").exists()
    return folder


RULES = [
    {"do_lower_case": True},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "tokenize_chinese_chars": False},
]


@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("config", RULES)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, files: str, config) -> None:
    from transformers import AutoTokenizer

    folder = wordpiece_folder(tmp_path / "tok", files, **config)
    theirs = AutoTokenizer.from_pretrained(folder)
    text = GERMAN + "\n東京 das Haus.\n"
    out = prepare(tmp_path, text, folder)
    texts = [line for line in text.split("\n") if line]
    expected = [theirs(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert sorted(documents(out)) == sorted(expected)
    written = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert written(texts)["input_ids"] == theirs(texts)["input_ids"]
    info = load_tokenizer_info(out / "tokenizer")
    assert info == load_tokenizer_info(folder) == Manifest.load(out).tokenizer


def test_the_usual_rules_leave_the_manifest_as_it_was(tmp_path: Path) -> None:
    out = prepare(tmp_path, GERMAN, wordpiece_folder(tmp_path / "tok", do_lower_case=True))
    value = json.loads((out / "manifest.json").read_text())
    assert set(value["tokenizer"]) == {"vocab_size", "lower_case", "fingerprint", "special_ids"}
    assert not {"strip_accents", "chinese_characters", "tokenizer_model"} & set(value["settings"])


def test_options_override_files_and_a_tokenizer_json_is_a_vocabulary(tmp_path: Path) -> None:
    folder = wordpiece_folder(tmp_path / "tok", "tokenizer.json", do_lower_case=True)
    out = prepare(tmp_path, GERMAN, folder / "tokenizer.json", "--keep-accents")
    tokens = read_vocabulary(out / "tokenizer" / "vocab.txt")
    assert tokens == TOKENS
    assert "möchte" in {tokens[i] for document in documents(out) for i in document}
    assert Manifest.load(out).tokenizer.rules == WordPieceRules(True, False, True)
    assert (
        main(
            f"--text {tmp_path}/t.txt --out {out} --workers 1 --validation-fraction 0".split()
            + ["--min-tokens", "1", "--vocab", str(folder), "--keep-accents"]
        )
        == 0
    )


@pytest.mark.parametrize("config", RULES)
def test_a_tokenizer_json_of_another_name_keeps_its_rules(tmp_path: Path, config) -> None:
    from transformers import AutoTokenizer

    folder = wordpiece_folder(tmp_path / "tok", "tokenizer.json", **config)
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = load_tokenizer_info(folder).rules
    # next to it, in a folder of several, is another tokenizer with all of its files.
    mine = tmp_path / "several" / "mine.json"
    wordpiece_folder(mine.parent, do_lower_case=not config["do_lower_case"])
    (mine.parent / "vocab.txt").write_text("\n".join(TOKENS[:5] + ["of", "another"]) + "\n")
    shutil.copyfile(folder / "tokenizer.json", mine)
    info = load_tokenizer_info(mine)
    assert info.rules == expected and info.vocabulary() == TOKENS
    assert info.files == {"tokenizer.json": mine}  # what a run folder keeps
    out = prepare(tmp_path, GERMAN, mine)
    texts = GERMAN.split("\n\n")
    assert sorted(documents(out)) == sorted(
        theirs(text.strip(), add_special_tokens=False)["input_ids"] for text in texts
    )
    assert Manifest.load(out).tokenizer.rules == expected


def added_tokens(content: dict) -> None:
    """As ``add_tokens`` and ``save_pretrained`` leave it; vocab.txt stays as it was."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    content["added_tokens"].append(
        {"id": len(TOKENS), "content": "[URL]", **plain, "special": True}
    )


def other_rules(content: dict) -> None:
    nfkc = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    content["normalizer"] = nfkc


@pytest.mark.parametrize("change", [None, added_tokens, other_rules])
def test_if_two_files_differ_the_one_that_transformers_reads_decides(
    tmp_path: Path, change
) -> None:
    from transformers import AutoTokenizer

    folder = wordpiece_folder(tmp_path / "tok", "tokenizer.json", do_lower_case=True)
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if change is not None:
        change(content)
        # Its own class would put BERT's normalizer in the place of the file's.
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    info = load_tokenizer_info(folder)
    assert ("vocab.txt" in info.files) == (change is None)
    assert info.vocab_size == len(TOKENS) + (change is added_tokens)
    text = "Er möchte das schöne Haus."
    (out := tmp_path / "prepared").mkdir()
    (got,) = documents(prepare(out, text, folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert got == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "config", [{"word_tokenizer_type": "mecab"}, {"subword_tokenizer_type": "character"}]
)
def test_words_cut_by_code_that_no_file_holds_are_refused(tmp_path: Path, config) -> None:
    folder = wordpiece_folder(tmp_path / "tok", tokenizer_class="BertJapaneseTokenizer", **config)
    with pytest.raises(DataError, match=rf"tokenizer_config.json: {next(iter(config))}="):
        load_tokenizer_info(folder)


def test_a_vocabulary_with_a_byte_order_mark_or_another_line_end_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\ufeff" + "\n".join(TOKENS), encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt: starts with a byte order mark"):
        load_tokenizer_info(path)
    path.write_text("\r".join(TOKENS), encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"vocab\.txt: its lines end with CR"):
        load_tokenizer_info(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither vocab\.txt nor tokenizer\.json in this"):
        load_tokenizer_info(tmp_path / "empty")


@pytest.mark.parametrize("name", ["spiece.model", "source.spm", "vocab.json", "merges.txt"])
def test_files_of_other_forms_are_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(DataError, match=rf"found: {name}\); convert it to a tokenizer.json"):
        load_tokenizer_info(tmp_path)
    if not name.endswith((".json", ".txt")):
        with pytest.raises(DataError, match=rf"{name}: neither .*; convert it to"):
            load_tokenizer_info(tmp_path / name)


def test_an_alphabet_is_as_large_as_the_text_needs(tmp_path: Path, capsys) -> None:
    rng = random.Random(3)
    ideographs = [chr(0x4E00 + i) for i in range(3000)]
    lines = ["".join(rng.choices(ideographs, k=40)) + "。これは何か?" for _ in range(400)]
    (tmp_path / "t.txt").write_text("\n\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    given = f"--text {tmp_path}/t.txt --out {out} --workers 1 --validation-fraction 0".split()
    assert main([*given, "--train-vocab", "8000"]) == 0
    tokens = read_vocabulary(out / "tokenizer" / "vocab.txt")
    assert "?" in tokens and len(set(ideographs) & set(tokens)) > 2900
    ids = np.concatenate([np.array(d) for d in documents(out)])
    assert np.mean(ids == tokens.index("[UNK]")) < 0.001
    said = capsys.readouterr().err
    assert f"the vocabulary has {len(tokens):,}" in said and "8,000" in said
    assert "are [UNK]" not in said


def test_many_unknown_tokens_are_reported_with_figures(tmp_path: Path, capsys) -> None:
    prepare(tmp_path, GERMAN.replace("Mann", "Фрау"), wordpiece_folder(tmp_path / "tok"))
    assert "warning: 2 of 17 tokens (11.8%) are [UNK]" in capsys.readouterr().err


def test_a_small_vocabulary_leaves_out_rare_characters_and_no_more() -> None:
    rules = WordPieceRules.of(True)
    counts = Counter({chr(0x430 + i): 10_000 for i in range(32)})
    counts.update({chr(0x4E00 + i): 1 for i in range(3000)})
    counts.update({"а": 9_000_000, "?": 1})
    assert len(choose_alphabet(counts, 8000, rules)) == 1000
    small = choose_alphabet(counts, 300, rules)
    assert set(small) >= {chr(0x430 + i) for i in range(32)} | {"?"} and len(small) == 263
    with pytest.raises(DataError, match="distinct characters, so at least"):
        choose_alphabet(Counter({chr(0x4E00 + i): 1 for i in range(3000)}), 300, rules)


@pytest.mark.slow
@pytest.mark.parametrize("accents", ["as the casing", "the other way"])
@pytest.mark.parametrize("casing", ["uncased", "cased"])
def test_ids_equal_those_of_transformers_on_every_character(
    tmp_path: Path, shared_data: Path, casing: str, accents: str
) -> None:
    from transformers import AutoTokenizer

    vocab = shared_data / "vocab" / f"bert-base-{casing}-vocab.txt"
    lower = casing == "uncased"
    strip = None if accents == "as the casing" else not lower
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": strip}
        )
    )
    info = load_tokenizer_info(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    ours = WordPieceEncoder(info.vocabulary(), info.rules)
    words = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    assert len(words) == 1_112_064
    for begin in range(0, len(words), 1 << 17):
        part = words[begin : begin + (1 << 17)]
        found, lengths = ours.encode(part)
        expected = [e.ids for e in theirs.encode_batch_fast(part, add_special_tokens=False)]
        assert lengths.tolist() == list(map(len, expected))
        assert found.tolist() == [number for ids in expected for number in ids]
