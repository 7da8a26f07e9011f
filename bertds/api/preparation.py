"""``bertds.prepare``: turns a corpus into training shards."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from bertds.config.suggest import nearest
from bertds.data.formats.manifest import Manifest
from bertds.errors import ConfigError

_PATHS = ("wiki", "books", "text", "jsonl", "parquet", "pubmed", "hf")
"""Options that take several paths; a single path need not be in a list."""


def prepare(out: str | Path, **options: Any) -> Manifest:
    """Prepare a corpus, or continue where an earlier call was stopped.

    A script that asks for several workers must call this below ``if __name__ == "__main__"``: the
    workers are processes that import the script again. In a notebook ``workers=1`` is safe.

    Args:
        out: the folder of shards and ``manifest.json``.
        options: the fields of :class:`data_prep.request.PrepRequest`, which are named like the
            options of ``bertds prep``: ``text=["corpus.txt"]``, ``wiki=[...]``,
            ``train_vocab=8192``, ``vocab="vocab.txt"``, ``validation_fraction=0.05`` ...

    Returns:
        The manifest of the folder: counts, checksums, tokenizer.

    Raises:
        ConfigError: an option is unknown, missing or contradicts another one.
        DataError: a source cannot be read, or all of its documents were dropped.
    """
    from data_prep.prepare import prepare as run
    from data_prep.request import REMOVED_OPTIONS, PrepRequest

    known = [item.name for item in fields(PrepRequest)]
    for name, value in options.items():
        if name in REMOVED_OPTIONS:
            raise ConfigError(f"prepare({name}=...) was removed: {REMOVED_OPTIONS[name]}")
        if name not in known:
            raise ConfigError(f"prepare({name}=...): no such option{nearest(name, known)}")
        if name in _PATHS and isinstance(value, (str, Path)):
            options = {**options, name: [value]}
    return run(PrepRequest(out=out, **options))
