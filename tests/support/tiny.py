"""A corpus, a recipe and a DeepSpeed JSON that train in seconds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = [f"w{number:02d}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

TINY_RECIPE = """
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  hidden_dropout_prob: 0.0
  attention_probs_dropout_prob: 0.0
data:
  sequence_length: 32
  max_predictions_per_sequence: 5
schedule:
  total_steps: 6
  warmup_steps: 2
log:
  every_steps: 1
  progress: none
"""

TINY_JSON = (
    '{"train_batch_size": 12, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,'
    '"optimizer": {"type": "AdamW", "params": {"lr": 5e-3, "weight_decay": 0.01}}}'
)


def tiny_documents(count: int, seed: int) -> list[list[list[str]]]:
    """Documents of sentences of words in which a word says much about the one after it."""
    chance = random.Random(seed)
    documents = []
    for _ in range(count):
        sentences = []
        word = chance.randrange(60)
        for _ in range(chance.randint(4, 14)):
            sentence = []
            for _ in range(chance.randint(4, 12)):
                sentence.append(WORDS[word])
                word = (word + 1) % 60 if chance.random() < 0.9 else chance.randrange(60)
            sentences.append(sentence)
        documents.append(sentences)
    return documents


def write_tiny_vocab(path: Path) -> Path:
    """Write a vocab.txt of the special tokens and 60 words."""
    path.write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    return path


def write_tiny_data(folder: Path, vocab: Path, ends: Sequence[int] = (5, 30, 60)) -> Path:
    """Write training shards that end after this number of documents, and one of validation."""
    from bertds.data.formats.manifest import Manifest, SplitInfo
    from bertds.data.formats.token_shards import shard_name, write_token_shard
    from bertds.data.vocabulary import load_tokenizer_info

    (folder / "tokenizer").mkdir(parents=True)
    shutil.copyfile(vocab, folder / "tokenizer" / "vocab.txt")
    tokenizer = load_tokenizer_info(folder / "tokenizer", True)
    ids = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}

    def write(split: str, number: int, documents: list[list[list[str]]]) -> object:
        (folder / split).mkdir(exist_ok=True)
        sentences = [[ids[word] for word in s] for d in documents for s in d]
        return write_token_shard(
            folder / split / shard_name(number),
            np.concatenate([np.array(s) for s in sentences]),
            np.concatenate([[0], np.cumsum([len(s) for s in sentences])]),
            np.concatenate([[0], np.cumsum([len(d) for d in documents])]),
            vocab_size=tokenizer.vocab_size,
            fingerprint=tokenizer.fingerprint,
        )

    train = tiny_documents(ends[-1], seed=0)
    starts = [0, *ends[:-1]]
    shards = [write("train", i, train[a:b]) for i, (a, b) in enumerate(zip(starts, ends))]
    held_out = [write("validation", 0, tiny_documents(10, seed=1))]
    count = ends[-1] + 10
    Manifest(
        tokenizer=tokenizer,
        splits={
            "train": SplitInfo(shards=tuple(shards)),  # type: ignore[arg-type]
            "validation": SplitInfo(shards=tuple(held_out)),
        },  # type: ignore[arg-type]
        documents={"read": count, "written": count, "dropped": {}},
    ).save(folder)
    return folder
