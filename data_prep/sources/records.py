"""Records with a text field: JSON lines, Parquet, BioASQ / PubMed JSON (address -> abstract)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bertds.errors import DataError
from data_prep.clean import clean_paragraphs, without_tags
from data_prep.document import BAD_UTF8, EMPTY, MALFORMED, Document, Unit
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.text import unit_lines


def read_jsonl(unit: Unit) -> Iterator[Document]:
    """Yield the documents of a .jsonl file; ``options`` holds the key of the text."""
    key = unit.options[0]
    for line, owned in unit_lines(unit):
        if not owned:
            return
        if line.strip():
            yield json_document(line, key, unit.path)


def json_document(line: bytes, key: str, path: Path) -> Document:
    """Read one line: an object with a text under ``key``."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    except ValueError:
        return Document("", MALFORMED)
    if not isinstance(value, dict):
        return Document("", MALFORMED)
    if key not in value:
        keys = ", ".join(list(value)[:8])
        raise DataError(
            f"{path}: a record has no {key!r} (it has: {keys}); name the text's key with --text-key"
        )
    return text_value_document(value[key], record_title(value))


def record_title(record: Mapping[str, Any]) -> str:
    """Return what a record calls itself: its title, else its id or address, else ""."""
    for key in ("title", "id", "url"):
        if isinstance(record.get(key), str | int):
            return str(record[key])
    return ""


def text_value_document(value: object, title: str = "") -> Document:
    """Clean a text that a record holds."""
    if not isinstance(value, str):
        return Document("", EMPTY if value is None else MALFORMED, title)
    # Lone surrogates come out of "\ud800" escapes and cannot be written as UTF-8.
    text = clean_paragraphs(value.encode("utf-8", "replace").decode("utf-8"))
    return Document(text, "" if text else EMPTY, title)


def read_pubmed(unit: Unit) -> Iterator[Document]:
    """Yield the abstracts of one JSON object, address -> abstract (BioASQ); .gz or plain."""
    data = b"".join(block for block, _ in whole_blocks(unit.path))
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{unit.path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{unit.path}: expected an object, address -> abstract")
    for address, abstract in value.items():
        text = without_tags(abstract) if isinstance(abstract, str) else abstract
        yield text_value_document(text, address)


def read_parquet(unit: Unit) -> Iterator[Document]:
    """Yield the documents of the row groups ``[start, end)``; ``options`` holds the column."""
    return parquet_documents(unit.path, unit.file, range(unit.start, unit.end), unit.options[0])


def parquet_documents(opened: Any, path: str, row_groups: range, column: str) -> Iterator[Document]:
    """Yield the documents of some row groups of a path or open file; ``path`` is for errors."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(opened) as file:
            names = [n for n in ("title", "id", "url") if n in file.schema_arrow.names]
            for batch in file.iter_batches(
                batch_size=256,
                row_groups=list(row_groups),
                columns=list(dict.fromkeys([column, *names[:1]])),
            ):
                titles = batch.column(names[0]).to_pylist() if names else [""] * len(batch)
                for value, title in zip(batch.column(column), titles):
                    yield text_value_document(value.as_py(), "" if title is None else str(title))
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: damaged Parquet ({error})") from error


def parquet_row_groups(opened: Any, path: Path | str, column: str) -> list[int]:
    """Return the size in bytes of each row group, after checking that the column is there.

    Args:
        opened: a path, or an open file.
        path: its name, for errors.
        column: the text's.

    Raises:
        DataError: not Parquet, or no such column.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            metadata = file.metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
    if column not in names:
        raise DataError(
            f"{path}: no column {column!r} (there: {', '.join(names[:8])}); set --text-key"
        )
    return sizes
