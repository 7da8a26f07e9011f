"""A folder with vocab.txt and tokenizer.json has one vocabulary: that of transformers, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.tokenizer_folder import bert_tokenizer_json
from bertds.data.vocabulary import load_tokenizer_info, vocabulary_size
from bertds.data.vocabulary_file import vocabulary_file
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import DataError
from tests.support.tiny import SPECIAL, WORDS

TOKENS = [*SPECIAL, *WORDS]


def both(folder: Path, vocab: list[str], tokens: list[str] = TOKENS) -> Path:
    """Write a folder with two files of these vocabularies."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    content = bert_tokenizer_json(tokens, WordPieceRules.of(lower_case=True))
    (folder / "tokenizer.json").write_text(content)
    return folder


def in_transformers(folder: Path) -> dict[str, int]:
    from transformers import BertTokenizer

    return dict(BertTokenizer.from_pretrained(folder).get_vocab())


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ([*SPECIAL, "w01", "w00", *WORDS[2:]], "id 5 is 'w01' in vocab.txt, and 'w00' in"),
        ([*TOKENS, "new"], "id 65 is 'new' in vocab.txt, and 'missing' in tokenizer.json"),
        ([*SPECIAL, "of", "another"], "id 5 is 'of' in vocab.txt, and 'w00' in"),
    ],
)
def test_two_vocabularies_are_refused(tmp_path: Path, vocab: list[str], message: str) -> None:
    folder = both(tmp_path / "tok", vocab)
    assert set(in_transformers(folder)) == set(TOKENS)  # transformers takes one without a word
    for reader in (vocabulary_size, load_tokenizer_info, vocabulary_file):
        with pytest.raises(DataError, match=message):
            reader(folder)
    # A file that is named decides alone.
    assert load_tokenizer_info(folder / "vocab.txt").vocab_size == len(vocab)
    assert load_tokenizer_info(folder / "tokenizer.json").vocab_size == len(TOKENS)


def test_tokens_that_were_added_later_are_counted_as_in_transformers(tmp_path: Path) -> None:
    folder = both(tmp_path / "tok", TOKENS, [*TOKENS, "[URL]", "[NAME]"])
    assert vocabulary_size(folder) == len(in_transformers(folder)) == len(TOKENS) + 2
    (folder / "vocab.txt").write_text("\n".join([*TOKENS, "[URL]", "[NAME]"]) + "\n")
    assert vocabulary_size(folder) == len(TOKENS) + 2
    assert vocabulary_file(folder).name == "vocab.txt"
    assert vocabulary_size(tmp_path) == 0


def test_a_vocab_txt_of_another_model_says_nothing_about_a_bpe(tmp_path: Path) -> None:
    """PhoBERT's, for example: a token and its frequency per line, without BERT's special tokens."""
    from tokenizers import Tokenizer, models

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abc"]
    Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [])).save(
        str(tmp_path / "tokenizer.json")
    )
    (tmp_path / "vocab.txt").write_text("a 500\nb 400\na 500\n")
    assert vocabulary_size(tmp_path) == len(names)


def swapped(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content: dict[str, Any] = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["w00"], vocab["w01"] = vocab["w01"], vocab["w00"]
    path.write_text(json.dumps(content))


def test_prepared_data_whose_tokenizer_json_was_exchanged_is_refused(
    tiny_data: Path, tmp_path: Path
) -> None:
    """An export would contain it, and transformers would read other ids than were trained."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    both(data / "tokenizer", TOKENS)
    assert Manifest.load(data).tokenizer.vocab_size == len(TOKENS)
    swapped(data / "tokenizer")
    with pytest.raises(
        DataError, match=r"id 5 is 'w00' in vocab\.txt, and 'w01' in tokenizer.json"
    ):
        Manifest.load(data)
