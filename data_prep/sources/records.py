"""Records with a text field: JSON lines, Parquet, BioASQ / PubMed JSON (address -> abstract)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

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
    if not isinstance(value, dict) or key not in value:
        keys = ", ".join(list(value)[:8]) if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"{path}: a record has no {key!r} (it has: {keys}); name the text's key with --text-key"
        )
    return text_value_document(value[key])


def text_value_document(value: object) -> Document:
    """Clean a text that a record holds."""
    if not isinstance(value, str):
        return Document("", EMPTY if value is None else MALFORMED)
    # Lone surrogates come out of "\ud800" escapes and cannot be written as UTF-8.
    text = clean_paragraphs(value.encode("utf-8", "replace").decode("utf-8"))
    return Document(text) if text else Document("", EMPTY)


def read_pubmed(unit: Unit) -> Iterator[Document]:
    """Yield the abstracts of one JSON object, address -> abstract (BioASQ); .gz or plain."""
    data = b"".join(block for block, _ in whole_blocks(unit.path))
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{unit.path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{unit.path}: expected an object, address -> abstract")
    for abstract in value.values():
        text = without_tags(abstract) if isinstance(abstract, str) else abstract
        yield text_value_document(text)


def read_parquet(unit: Unit) -> Iterator[Document]:
    """Yield the documents of one row group (``start``); ``options`` holds the text column."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(unit.path) as file:
            for batch in file.iter_batches(
                batch_size=256, row_groups=[unit.start], columns=[unit.options[0]]
            ):
                for value in batch.column(0):
                    yield text_value_document(value.as_py())
    except (OSError, ArrowException) as error:
        raise DataError(f"{unit.path}: damaged Parquet ({error})") from error


def parquet_row_groups(path: Path, column: str) -> list[int]:
    """Return the size in bytes of each row group, after checking that the column is there.

    Raises:
        DataError: not Parquet, or no such column.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
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
