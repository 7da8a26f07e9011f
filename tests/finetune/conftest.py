from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = [
    "good",
    "bad",
    "film",
    "plot",
    "the",
    "a",
    "was",
    "london",
    "paris",
    "ann",
    "bob",
    "went",
    "to",
    "who",
    "where",
    "?",
    ".",
    "##s",
    "is",
]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers in Hugging Face layout."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


def sentiment(count: int) -> list[tuple[str, str]]:
    words = ["film", "plot", "the", "a"]
    rows = []
    for n in range(count):
        label = n % 2
        text = [words[n % 4], words[(n // 4) % 4], ["bad", "good"][label], words[(n // 2) % 4]]
        rows.append((" ".join(text[n % 3 :] + text[: n % 3]), str(label)))
    return rows


@pytest.fixture(scope="session")
def tiny_sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLUE folder whose SST-2 can be learned in a few steps."""
    root = tmp_path_factory.mktemp("glue")
    folder = root / "SST-2"
    folder.mkdir()
    for name, count in (("train", 96), ("dev", 20)):
        lines = ["sentence\tlabel", *("\t".join(row) for row in sentiment(count))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    test = ["index\tsentence", *(f"{n}\t{text}" for n, (text, _) in enumerate(sentiment(6)))]
    (folder / "test.tsv").write_text("\n".join(test) + "\n")
    return root


@pytest.fixture(scope="session")
def cases() -> Path:
    """Files that people's reports came with."""
    return Path(__file__).parent / "cases"
