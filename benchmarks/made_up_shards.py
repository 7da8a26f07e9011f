"""A prepared folder of made-up text, written in seconds, for benchmarks without data.

Documents and sentences have the lengths of English Wikipedia's (lognormal), so row lengths vary as
much. Words are drawn by Zipf's law, so a model can learn which words are common. The vocabulary has
the size of bert-base-uncased's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertds.data.formats.manifest import Manifest, SplitInfo
from bertds.data.formats.token_shards import shard_name, write_token_shard
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.data.vocabulary_file import SPECIAL_TOKENS

VOCABULARY = 30_522


def write_prepared(folder: Path, tokens: int, shards: int = 1) -> Path:
    """Write training shards and a validation shard, tokenizer and manifest; return the folder.

    Args:
        folder: is made; what is in it is overwritten.
        tokens: of each training shard, about.
        shards: number of training shards.
    """
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    special = list(SPECIAL_TOKENS.values())
    words = [*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer_info(folder / "tokenizer", True)
    sizes = {"train": [tokens] * shards, "validation": [tokens // 50]}
    splits, documents, seed = {}, 0, 0
    for split, wanted in sizes.items():
        (folder / split).mkdir(exist_ok=True)
        infos = []
        for number, size in enumerate(wanted):
            info, count = _shard(folder / split / shard_name(number), tokenizer, size, seed)
            infos.append(info)
            documents, seed = documents + count, seed + 1
        splits[split] = SplitInfo(shards=tuple(infos))
    counts = {"read": documents, "written": documents, "dropped": {}}
    Manifest(tokenizer=tokenizer, splits=splits, documents=counts).save(folder)
    return folder


def _shard(path: Path, tokenizer: TokenizerInfo, tokens: int, seed: int):
    generator = np.random.default_rng(seed)
    sentences = np.maximum(1, generator.lognormal(3.1, 0.55, tokens // 26 + 8).astype(np.int64))
    lengths = np.maximum(1, generator.lognormal(2.0, 1.2, len(sentences)).astype(np.int64))
    ends = np.cumsum(lengths)
    ends = np.unique([0, *ends[ends < len(sentences)].tolist(), len(sentences)])
    total = int(sentences.sum())
    # Zipf's law by its inverse: the rank of a word is about V ** u, u uniform.
    ranks = (VOCABULARY - 10.0) ** generator.random(total)
    ids = (ranks.astype(np.int64) + 8).clip(max=VOCABULARY - 1)
    info = write_token_shard(
        path,
        ids,
        np.concatenate([[0], np.cumsum(sentences)]),
        ends,
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
    )
    return info, len(ends) - 1
