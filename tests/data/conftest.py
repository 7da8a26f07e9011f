from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest, SplitInfo
from bertds.data.formats.token_shards import TokenShard, shard_name, write_token_shard
from bertds.data.vocabulary import load_tokenizer_info
from tests.support import reference_rows

VOCABULARY = ["[PAD]", *(f"[unused{n}]" for n in range(5)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += [f"word{n}" for n in range(300)] + [f"##piece{n}" for n in range(90)]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The plain-Python twins of the compiled loops."""
    return reference_rows


@pytest.fixture(scope="session")
def vocab(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab):
    return load_tokenizer_info(vocab)


def random_arrays(documents, seed, *, mean_sentences=6, mean_tokens=9):
    generator = np.random.default_rng(seed)
    sentences = generator.geometric(1 / mean_sentences, documents)
    lengths = generator.geometric(1 / mean_tokens, sentences.sum())
    tokens = generator.integers(10, len(VOCABULARY), lengths.sum()).astype(np.uint16)
    return tokens, np.r_[0, np.cumsum(lengths)], np.r_[0, np.cumsum(sentences)]


@pytest.fixture(scope="session")
def make_shard():
    """Return make_shard(documents, seed): a random shard in memory."""

    def make(documents, seed=0, **shape):
        return TokenShard.from_arrays(f"memory-{seed}", *random_arrays(documents, seed, **shape))

    return make


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory, vocab, tokenizer):
    """Return make_corpus(train, validation): shards with these numbers of documents."""

    def make(train=(20, 3, 11), validation=(4,)):
        folder = tmp_path_factory.mktemp("corpus")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_bytes(vocab.read_bytes())
        splits = {}
        for split, sizes in (("train", train), ("validation", validation)):
            (folder / split).mkdir()
            splits[split] = SplitInfo(
                shards=tuple(
                    write_token_shard(
                        folder / split / shard_name(number),
                        *random_arrays(size, seed=1000 * len(split) + number),
                        vocab_size=tokenizer.vocab_size,
                        fingerprint=tokenizer.fingerprint,
                    )
                    for number, size in enumerate(sizes)
                )
            )
        total = sum(train) + sum(validation)
        Manifest(
            tokenizer=tokenizer,
            splits=splits,
            documents={"read": total + 2, "written": total, "dropped": {"empty": 2}},
        ).save(folder)
        return folder

    return make
