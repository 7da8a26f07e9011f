"""Reads a file as preparation does."""

from __future__ import annotations

from pathlib import Path

from data_prep.document import Document
from data_prep.sources import READERS, file_units, source_file

OPTIONS = {"text": ("blank-line",), "jsonl": ("text",), "parquet": ("text",)}


def read(kind: str, path: Path) -> list[Document]:
    file = source_file(kind, path, path.name, OPTIONS.get(kind, ()))
    return [d for unit in file_units(file, 1 << 20) for d in READERS[unit.reader](unit)]
