"""Tokenizers do what their files say, and what is written on says the same."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.plain_text import text_shard
from bertds.data.formats.token_shards import TokenShard
from bertds.data.tokenizer_json import JsonTokenizer, WordPieceRules
from bertds.data.vocabulary import load_tokenizer_info, read_vocabulary
from bertds.errors import ConfigError, DataError
from bertds.finetune.features import in_running_text
from data_prep.build_wiki_books import main
from data_prep.stages.vocabulary import choose_alphabet
from data_prep.tokens.sentences import sentence_splitter
from data_prep.tokens.wordpiece import WordPieceEncoder

GERMAN = "Er möchte das schöne Haus.\n\nEr müsste das Haus.\n\nEin Mann: das Haus.\n"
TOKENS = """[PAD] [UNK] [CLS] [SEP] [MASK] er möchte mochte das schöne schone haus . müsste musste
ein mann : 東 京 東京 ##京 Er Haus""".split()  # noqa: SIM905
ENGLISH = [
    "The river runs to the sea, and it isn't slow; 12 boats (all new) went there.",
    "It's the best of times. We'll see what the naïve café 東京は首都 brings! 🎉",
    "Another document tells of cats, dogs & <mask> birds that sing in the trees.",
    "She said: “so it was”, and he said nothing at all about it for 3.5 years.",
] * 6


def wordpiece_folder(folder: Path, files: str = "vocab.txt", **config: object) -> Path:
    """A tokenizer folder with vocab.txt, or as transformers 5 saves it."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", **config})
    )
    if files == "tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder.with_name("saved"))
        shutil.rmtree(folder)
        folder.with_name("saved").rename(folder)
        assert not (folder / "vocab.txt").exists()
    return folder


def prepare(tmp_path: Path, text: str, vocab: Path | str, *more: str) -> Path:
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    given = f"--text {tmp_path}/t.txt --out {out} --workers 1 --validation-fraction 0".split()
    assert main([*given, "--min-tokens", "1", "--vocab", str(vocab), *more]) == 0
    return out


def documents(out: Path) -> list[list[int]]:
    manifest = Manifest.load(out)
    (info,) = manifest.splits["train"].shards
    shard = TokenShard.open(out / info.file, info, fingerprint=manifest.tokenizer.fingerprint)
    ends = shard.sentence_offsets[shard.document_offsets]
    return [shard.token_ids[a:b].tolist() for a, b in pairwise(ends)]


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


def test_options_go_before_files_and_a_tokenizer_json_is_a_vocabulary(tmp_path: Path) -> None:
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
    # Beside it, in a folder of several, is another tokenizer with all of its files.
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


def test_a_vocabulary_with_a_byte_order_mark_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\ufeff" + "\n".join(TOKENS), encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt: starts with a byte order mark"):
        load_tokenizer_info(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither vocab\.txt nor tokenizer\.json in this"):
        load_tokenizer_info(tmp_path / "empty")


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


def test_much_unknown_is_said_with_figures(tmp_path: Path, capsys) -> None:
    prepare(tmp_path, GERMAN.replace("Mann", "Фрау"), wordpiece_folder(tmp_path / "tok"))
    assert "warning: 2 of 17 tokens (11.8 %) are [UNK]" in capsys.readouterr().err


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


# --------------------------------------------------------------------------------------------
# Every character
# --------------------------------------------------------------------------------------------

_PIECES = 4


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


# --------------------------------------------------------------------------------------------
# Byte-level BPE, SentencePiece unigram
# --------------------------------------------------------------------------------------------

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MODERN = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def names_of(special: list[str]) -> dict[str, str]:
    order = (
        ("cls", "pad", "sep", "unk", "mask")
        if special is ROBERTA
        else ("unk", "cls", "sep", "pad", "mask")
    )
    return {f"{name}_token": token for name, token in zip(order, special)}


def json_folder(folder: Path, kind: str) -> Path:
    """A trained tokenizer.json with its configuration, as its authors publish them."""
    special = MODERN if kind == "modern" else ROBERTA
    if kind in ("modern", "roberta"):
        built = Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        trainer: object = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        built = Tokenizer(models.Unigram())
        built.normalizer = normalizers.NFKC()
        built.pre_tokenizer = pre_tokenizers.Metaspace()
        built.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    built.train_from_iterator(ENGLISH, trainer)
    if kind == "roberta":
        built.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))
    # Lists of names, and objects with "content", are both found in the wild.
    names = {n: {"content": t, "lstrip": n == "mask_token"} for n, t in names_of(special).items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["modern", "roberta", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return json_folder(tmp_path_factory.mktemp("json") / request.param, request.param)


def test_shards_hold_the_ids_and_words_of_the_tokenizer_itself(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    texts = list(dict.fromkeys(ENGLISH))
    text = "\n\n".join(texts)
    out = prepare(tmp_path, text, folder)
    manifest = Manifest.load(out)
    assert manifest.tokenizer.model == ("unigram" if folder.name == "unigram" else "bpe")
    # "<mask>" in a text is text, and a document is its sentences with a space between.
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    expected = [theirs.encode(t, add_special_tokens=False) for t in texts]
    assert sorted(documents(out)) == sorted(e.ids for e in expected)
    (info,) = manifest.splits["train"].shards
    shard = TokenShard.open(out / info.file, info)
    starts = np.unpackbits(shard.word_starts, count=shard.tokens, bitorder="little")
    by_document = {
        tuple(e.ids): [int(a != b) for a, b in zip([None, *e.word_ids], e.word_ids)]
        for e in expected
    }
    at = 0
    for ids in documents(out):
        assert starts[at : at + len(ids)].tolist() == by_document[tuple(ids)]
        at += len(ids)
    # What transformers loads has the same ids, in the rows that training builds.
    written = AutoTokenizer.from_pretrained(out / "tokenizer")
    special = manifest.tokenizer.special_ids
    for sample in texts[:2]:
        ids = theirs.encode(sample, add_special_tokens=False).ids
        assert written(sample)["input_ids"] == [special["cls"], *ids, special["sep"]]
    pair = written("One boat.", "Two boats.")
    assert pair["input_ids"].count(special["sep"]) == 2
    assert pair["token_type_ids"][-1] == 1 and pair["token_type_ids"][0] == 0
    assert (
        written.mask_token == names_of(MODERN if folder.name == "modern" else ROBERTA)["mask_token"]
    )
    assert written.decode(written("It isn't slow.")["input_ids"], skip_special_tokens=True) == (
        "It isn't slow."
    )
    again = load_tokenizer_info(out / "tokenizer")
    assert again == manifest.tokenizer == load_tokenizer_info(folder)


MIXED = [
    "The river is long. 東京は日本の首都です。人口は多いです。It is old. Это город. 北京是首都。",
    "ภาษาไทยมีอักษรของตนเองและมีคนพูดกันมากทั่วประเทศ คนไทยเขียนติดกันโดยไม่เว้นวรรคระหว่างคำเลย",
    "བོད་ཀྱི་སྐད་ཡིག་ནི་རྙིང་པ་ཡིན། དེ་ནི་མང་པོས་ཤེས།",
    "他說：“這條河很長。”“是的！”她說。（完）“Yes.” She went. «Да.» «Нет.»",
    "한국어는 띄어쓰기를 한다. 東京 is far. 그는 말했다.",
]


def test_sentences_of_mixed_scripts_join_as_in_their_text(tmp_path: Path) -> None:
    folder = json_folder(tmp_path / "modern", "modern")
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    out = prepare(tmp_path, "\n\n".join(MIXED), folder)
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in MIXED]
    assert sorted(documents(out)) == sorted(expected)
    # A plain text that training reads itself: a sentence per line.
    lines = tmp_path / "lines.txt"
    lines.write_text(
        "\n\n".join("\n".join(sentence_splitter("en")(text)) for text in MIXED), "utf-8"
    )
    shard = text_shard(lines, load_tokenizer_info(folder))
    assert shard.token_ids.tolist() == [number for ids in expected for number in ids]
    # Tagged words, and tagged letters where no space is between them.
    assert in_running_text(["It", "is", "東", "京", "。", "ไทย", "นี้", "it"], True) == (
        ["It", " is", " 東", "京", "。", "ไทย", "นี้", " it"]
    )


def test_what_needs_wordpiece_says_so(folder: Path, tmp_path: Path) -> None:
    for option in (["--instances", "64:10"], ["--tokeniser", "nanotoken"]):
        with pytest.raises(ConfigError, match=rf"{option[0]}.* is for BERT's WordPiece"):
            prepare(tmp_path, ENGLISH[0], folder, *option)
    with pytest.raises(DataError, match=r"casing and accents are set in its file"):
        prepare(tmp_path, ENGLISH[0], folder, "--uncased")


def test_a_tokenizer_without_a_mask_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "tokenizer_config.json").read_text())
    config["mask_token"] = "<extra>"
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"no mask token.*names '<extra>', which"):
        load_tokenizer_info(broken)
    (broken / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(DataError, match=r"tokenizer\.json: the tokenizers library cannot read it"):
        load_tokenizer_info(broken)


def test_ids_beyond_16_bits_and_gaps_are_kept(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    if folder.name == "unigram":
        pytest.skip("its ids are places in a list")
    vocab = content["model"]["vocab"]
    word = next(token for token in vocab if token.endswith("the"))
    vocab[word] = 70_000
    large = tmp_path / "large"
    large.mkdir()
    (large / "tokenizer.json").write_text(json.dumps(content))
    shutil.copyfile(folder / "tokenizer_config.json", large / "tokenizer_config.json")
    info = load_tokenizer_info(large)
    assert info.vocab_size == 70_001 and info.vocabulary()[70_000] == word
    out = prepare(tmp_path, "\n\n".join(ENGLISH[:4]), large)
    assert any(70_000 in document for document in documents(out))


def test_pieces_for_display_mark_what_continues_a_word(folder: Path) -> None:
    pieces = JsonTokenizer(folder / "tokenizer.json").pieces()
    assert "the" in pieces and any(p.startswith("##") for p in pieces) and "," in pieces
