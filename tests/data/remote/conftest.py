from __future__ import annotations

from pathlib import Path

import pytest

from bertds.data.sources import token_source
from bertds.system import storage
from tests.support.tiny import write_tiny_data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_vocab) -> Path:
    """Twelve training shards, a dozen kilobytes each."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    return write_tiny_data(folder, tiny_vocab, ends=tuple(range(40, 520, 40)))


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Small blocks, so that an epoch has many; short pauses."""
    monkeypatch.setattr(token_source, "BLOCK_ROWS", 300)
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.1)
