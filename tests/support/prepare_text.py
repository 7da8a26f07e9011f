"""Prepares one text, and reads the documents back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from data_prep.build_wiki_books import main


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
