"""A corpus of more parts and shards than a process may have open files."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from data_prep.build_wiki_books import main

MORE = 40


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(MORE + len(taken) + 1) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[MORE], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="requires Linux")
@pytest.mark.parametrize("shard_tokens", ["1000", "1000000"])
def test_more_parts_and_shards_than_open_files(
    tmp_path: Path, vocab: Path, made: SimpleNamespace, few_files: None, shard_tokens: str
) -> None:
    texts, rng = tmp_path / "texts", random.Random(4)
    texts.mkdir()
    for number in range(3 * MORE):
        (texts / f"{number}.txt").write_text(" ".join(made.sentence(rng) for _ in range(20)))
    given = ["--text", str(texts), "--out", str(tmp_path / "out"), "--vocab", str(vocab)]
    given += ["--workers", "1", "--dedup", "minhash", "--mix", "text=1.5", "--keep-dropped"]
    given += ["--instances", "64:10", "--dupe-factor", "1", "--shard-tokens", shard_tokens]
    assert main(given) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.documents["written"] == 3 * MORE
    assert (len(manifest.shards()) > MORE - 10) == (shard_tokens == "1000")
