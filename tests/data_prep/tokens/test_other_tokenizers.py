"""Tokenizers that are no WordPiece, by their tokenizer.json: BPE and unigram."""

from __future__ import annotations

import json
import shutil
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
from bertds.data.tokenizer_json import WORD_START, JsonTokenizer
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import ConfigError, DataError
from bertds.finetune.features import in_running_text
from data_prep.tokens.sentences import sentence_splitter
from tests.support.prepare_text import documents, prepare

ENGLISH = [
    "The river runs to the sea, and it isn't slow; 12 boats (all new) went there.",
    "It's the best of times. We'll see what the naïve café 東京は首都 brings! 🎉",
    "Another document tells of cats, dogs & <mask> birds that sing in the trees.",
    "She said: “so it was”, and he said nothing at all about it for 3.5 years.",
] * 6

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
    if kind != "unigram":
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
    # "<mask>" is a piece of a unigram model.
    special = manifest.tokenizer.special_ids
    own = [[special["unk"] if i == special["mask"] else i for i in e.ids] for e in expected]
    assert sorted(documents(out)) == sorted(own)
    (info,) = manifest.splits["train"].shards
    shard = TokenShard.open(out / info.file, info)
    starts = np.unpackbits(shard.word_starts, count=shard.tokens, bitorder="little")
    by_document = {
        tuple(ids): [int(a != b) for a, b in zip([None, *e.word_ids], e.word_ids)]
        for ids, e in zip(own, expected)
    }
    at = 0
    for ids in documents(out):
        assert starts[at : at + len(ids)].tolist() == by_document[tuple(ids)]
        at += len(ids)
    # What transformers loads has the same ids, in the rows that training builds.
    written = AutoTokenizer.from_pretrained(out / "tokenizer")
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


@pytest.mark.parametrize("kind", ["modern", "unigram", "plain", "words"])
def test_no_text_becomes_a_special_token(tmp_path: Path, kind: str) -> None:
    special = MODERN if kind in ("modern", "words") else ROBERTA
    folder = json_folder(tmp_path / kind, "modern" if kind == "words" else kind)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    if kind == "plain":  # as add_tokens leaves them
        for token in content["added_tokens"]:
            token["special"] = False
    elif kind == "words":
        content["model"] = {
            "type": "WordLevel",
            "vocab": content["model"]["vocab"],
            "unk_token": "[UNK]",
        }
        content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    file.write_text(json.dumps(content))
    tokenizer = JsonTokenizer(file)
    reserved = {n for name, n in tokenizer.special_ids.items() if name != "unk"}
    ids, lengths = tokenizer.encode([f"the {name} sea" for name in special])
    assert lengths.min() >= 3 and not reserved & set((ids & ~WORD_START).tolist())


def test_options_that_need_wordpiece_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--instances requires a WordPiece vocabulary"):
        prepare(tmp_path, ENGLISH[0], folder, "--instances", "64:10")
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


def test_pieces_for_display_mark_the_continuation_of_a_word(folder: Path) -> None:
    pieces = JsonTokenizer(folder / "tokenizer.json").pieces()
    assert "the" in pieces and any(p.startswith("##") for p in pieces) and "," in pieces
