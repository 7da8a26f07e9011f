from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertds.cli import main
from bertds.pretrained.extend_vocabulary import read_pieces, split_piece

OLD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gene", "##s", "##tic", "pro", "##te", "##in"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(OLD),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertForPreTraining(config)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(torch.arange(len(OLD)))
    model.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(OLD) + "\n")
    return tmp_path / "old"


def test_pieces_are_split_longest_first() -> None:
    numbers = {piece: number for number, piece in enumerate(OLD)}
    assert split_piece("protein", numbers) == [8, 9, 10]
    assert split_piece("genetic", numbers) == [5, 7]
    assert split_piece("##teins", numbers) == [9, 10, 6]
    assert split_piece("##gene", numbers) == [5]  # only known as a word
    assert split_piece("xyz", numbers) == split_piece("##xyz", numbers) == []


def test_new_pieces_start_as_the_mean_of_their_split(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, BertForPreTraining

    (tmp_path / "words.txt").write_text("protein\ngene\n##teins\nxyz\n")
    assert (
        main(["extend", str(folder), str(tmp_path / "new"), "--words", str(tmp_path / "words.txt")])
        == 0
    )
    assert capsys.readouterr().out.endswith(
        ": 3 new tokens; 1 token that the old vocabulary cannot split got the embedding of [UNK]\n"
    )
    old = BertForPreTraining.from_pretrained(folder)
    new = BertForPreTraining.from_pretrained(tmp_path / "new")
    before = old.bert.embeddings.word_embeddings.weight
    after = new.bert.embeddings.word_embeddings.weight
    assert torch.equal(after[: len(OLD)], before)
    assert torch.allclose(after[11], before[[8, 9, 10]].mean(0))
    assert torch.allclose(after[12], before[[9, 10, 6]].mean(0))
    assert torch.equal(after[13], before[1])  # xyz: nothing known, as [UNK]
    assert new.cls.predictions.bias[11].item() == pytest.approx(9.0)
    assert new.config.vocab_size == 14 and len(after) == 14
    assert torch.equal(new.bert.pooler.dense.weight, old.bert.pooler.dense.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.tokenize("Protein genes") == ["protein", "gene", "##s"]


def test_another_vocabulary_keeps_what_both_hold(folder: Path, tmp_path: Path) -> None:
    from transformers import BertForPreTraining

    new = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "protein", "gene"]
    (tmp_path / "vocab.txt").write_text("\n".join(new) + "\n")
    assert (
        main(["extend", str(folder), str(tmp_path / "new"), "--vocab", str(tmp_path / "vocab.txt")])
        == 0
    )
    before, after = (
        BertForPreTraining.from_pretrained(p).bert.embeddings.word_embeddings.weight
        for p in (folder, tmp_path / "new")
    )
    assert torch.equal(after[6], before[5])
    assert torch.allclose(after[5], before[[8, 9, 10]].mean(0))


def test_malformed_pieces_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "w.txt"
    out = str(tmp_path / "new")
    for text, message in (
        ("gene\n", "already has all of these tokens"),
        ("a\n\nb\n", "line 2: the token is empty"),
        ("a\ntwo words\n", "line 2: the token is empty or contains a space"),
        ("", "contains no tokens"),
        ("a\nb\na\n", "line 3: 'a' is already on line 1"),
    ):
        words.write_text(text)
        assert main(["extend", str(folder), out, "--words", str(words)]) == 2
        assert message in capsys.readouterr().err
    assert main(["extend", str(folder), out]) == 2
    words.write_text("a\nb\n")
    assert main(["extend", str(folder), out, "--vocab", str(words)]) == 2
    assert "does not contain [PAD], [UNK]" in capsys.readouterr().err
    assert read_pieces(folder / "vocab.txt") == OLD
