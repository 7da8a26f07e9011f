"""Readers of records with a text field: JSON lines, Parquet, BioASQ / PubMed JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bertds.errors import BertdsError, DataError
from bertds.system.json_fields import parse_text_json
from bertds.system.stored_path import FilePath, StoredPath, file_path
from data_prep.clean import clean_paragraphs, unescape, without_tags
from data_prep.document import BAD_UTF8, EMPTY, MALFORMED, NO_TEXT_KEY, Document, Limits, Unit
from data_prep.sources.blocks import DEFAULT_LIMITS, whole_blocks
from data_prep.sources.limits import Unpacking
from data_prep.sources.reading import unreadable
from data_prep.sources.text import unit_lines

if TYPE_CHECKING:
    from pyarrow import Scalar
    from pyarrow.parquet import ParquetFile, RowGroupMetaData


def read_jsonl(unit: Unit) -> Iterator[Document]:
    """Yield the documents of a .jsonl file; ``options`` holds the key of the text."""
    key = unit.options[0]
    for line, owned in unit_lines(unit):
        if not owned:
            return
        if line.strip():
            yield json_document(line, key)


def json_document(line: bytes, key: str) -> Document:
    """Read one line, an object with a text under ``key``; a bad line gives a reason to drop it."""
    try:
        value = parse_text_json(line)
    except UnicodeDecodeError:
        return Document("", BAD_UTF8)
    except (ValueError, RecursionError):
        return Document("", MALFORMED)
    if not isinstance(value, dict):
        return Document("", MALFORMED)
    if key not in value:
        return Document("", NO_TEXT_KEY, record_title(value))
    return text_value_document(value[key], record_title(value))


def check_jsonl(path: FilePath, key: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a file that is not JSON lines, or whose first records all lack the key of the text.

    Raises:
        DataError: names the line, what was found there, and the remedy.
    """
    head = next(whole_blocks(path), (b"", True))[0].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):  # often a single line of the whole file's size: do not parse it
        raise _not_lines(path, 1, _ARRAY)
    for beginning, what in _OF_WIKIS.items():
        if head.startswith(beginning):
            raise DataError(f"{path}: {what}, not JSON lines; use --wiki for this file")
    without_key = ""
    # One good record in the first megabyte is enough. Later lines are checked by the reader.
    end = path.stat().st_size
    lines = unit_lines(Unit("jsonl", "jsonl", str(path), 0, 0, end, 0, limits=limits))
    size = 0
    for number, (line, _) in enumerate(lines, 1):
        size += len(line)
        found = _line_problem(line, key)
        if found == "":
            return
        if found not in (None, _NO_KEY) and not without_key:
            raise _not_lines(path, number, str(found))
        if found == _NO_KEY and not without_key:
            there = ", ".join(list(parse_text_json(line))[:8])
            without_key = f"{path}: line {number}: the record has no key {key!r} (it has: {there})"
        if size > _CHECKED_BYTES:
            break
    if without_key:
        raise DataError(f"{without_key}; set the key that has the text with --text-key")


def _not_lines(path: FilePath, number: int, found: str) -> DataError:
    return DataError(
        f"{path}: line {number} is {found}, but --jsonl reads one JSON object per line; "
        f"convert it: jq -c '{'.[]' if found == _ARRAY else '.'}' FILE > FILE.jsonl"
    )


_OF_WIKIS = {b"<doc id=": "extracted articles (<doc ...>)", b"<mediawiki": "a MediaWiki dump"}
_NO_KEY, _ARRAY = "an object without the key", "the beginning of a JSON array"
_CHECKED_BYTES = 1 << 20


def _line_problem(line: bytes, key: str) -> str | None:
    """Return what is wrong with a line; "" if nothing, None if the line proves nothing."""
    text = line.strip()
    if not text:
        return None
    try:
        value = parse_text_json(text)
    except UnicodeDecodeError:
        return None
    except (ValueError, RecursionError):
        if text.startswith(b"["):
            return _ARRAY
        # An object spread over several lines has such lines; a damaged record hardly ever has.
        return "part of a JSON object" if text in (b"{", b"}") or text[:1] == b'"' else None
    if isinstance(value, dict):
        return "" if key in value else _NO_KEY
    return _ARRAY if isinstance(value, list) else "not a JSON object"


def record_title(record: Mapping[str, Any]) -> str:
    """Return the name of a record: its title, else its id or address, else ""."""
    for key in ("title", "id", "url"):
        if isinstance(record.get(key), str | int):
            return str(record[key])
    return ""


def text_value_document(value: object, title: str = "") -> Document:
    """Return a record's text as a document: cleaned, or with the reason why it is dropped."""
    if not isinstance(value, str):
        return Document("", EMPTY if value is None else MALFORMED, title)
    text = clean_paragraphs(value)
    return Document(text, "" if text else EMPTY, title)


def read_pubmed(unit: Unit) -> Iterator[Document]:
    """Yield the abstracts of one JSON object, URL -> abstract (BioASQ), plain or compressed.

    Raises:
        DataError: the file is not JSON, or not an object.
    """
    data = b"".join(block for block, _ in whole_blocks(unit.path, unit.limits))
    try:
        value = parse_text_json(data)
    except ValueError as error:
        raise DataError(f"{unit.path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{unit.path}: expected an object, URL -> abstract")
    for address, abstract in value.items():
        text = unescape(without_tags(abstract)) if isinstance(abstract, str) else abstract
        yield text_value_document(text, address)


def read_parquet(unit: Unit) -> Iterator[Document]:
    """Yield the documents of the row groups ``[start, end)``; ``options`` holds the column."""
    groups = range(unit.start, unit.end)
    opened = parquet_file(unit.path)
    return parquet_documents(opened, unit.file, groups, unit.options[0], unit.limits)


def parquet_file(path: FilePath) -> ParquetFile:
    """Return what pyarrow takes: a local path, or an open file of a store."""
    return path.open() if isinstance(path, StoredPath) else path


def parquet_documents(
    opened: ParquetFile, path: str, row_groups: range, column: str, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Document]:
    """Yield the documents of some row groups of a path or open file.

    Args:
        opened: the path, or the open file.
        path: its name, for errors.
        row_groups: the numbers of the row groups to read.
        column: the column of the text.
        limits: bounds on the unpacked size.

    Raises:
        DataError: the file is damaged, or unpacks to more than the limits.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(opened) as known:
            schema, metadata = known.schema_arrow, known.metadata
        # Only the text and one column for the title are read.
        names = [n for n in ("title", "id", "url") if schema.names.count(n) == 1]
        columns = list(dict.fromkeys([column, *names[:1]]))
        packed = _packed_bytes(metadata.row_group(group) for group in row_groups)
        counted = Unpacking(file_path(path), limits)
        # A dictionary stores each text once, however many rows refer to it. Reading the column as
        # a dictionary bounds the memory of 256 rows; each row is counted as it is unpacked.
        texts = [name for name in columns if str(schema.field(name).type).endswith("string")]
        with parquet.ParquetFile(opened, read_dictionary=texts) as file:
            for batch in file.iter_batches(
                batch_size=256, row_groups=list(row_groups), columns=columns
            ):
                titles = batch.column(names[0]) if names else [None] * len(batch)
                for value, title in zip(batch.column(column), titles):
                    document = _cell_document(value, title)
                    counted.add(len(document.text) + len(document.title), packed)
                    yield document
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise _parquet_error(path, "damaged Parquet", error) from error


def _packed_bytes(groups: Iterable[RowGroupMetaData]) -> int:
    return sum(
        group.column(i).total_compressed_size for group in groups for i in range(group.num_columns)
    )


def _parquet_error(path: FilePath | str, what: str, error: Exception) -> BertdsError:
    # pyarrow also raises an OSError for damaged data; only one of the system has a number.
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    return DataError(f"{path}: {what} ({error})")


def _cell_document(value: Scalar, title: Scalar | None) -> Document:
    """Return the document of one cell; pyarrow reports broken UTF-8 only here."""
    try:
        name = title.as_py() if title is not None else None
    except UnicodeDecodeError:
        name = None
    name = "" if name is None else str(name)
    try:
        return text_value_document(value.as_py(), name)
    except UnicodeDecodeError:
        return Document("", BAD_UTF8, name)


def parquet_row_groups(
    opened: ParquetFile, path: FilePath | str, column: str, limits: Limits = DEFAULT_LIMITS
) -> list[int]:
    """Return the size in bytes of each row group, after checking that the column exists.

    Args:
        opened: a path, or an open file.
        path: its name, for errors.
        column: the column of the text.
        limits: bounds on the unpacked size.

    Raises:
        DataError: the file is not Parquet, lacks the column, or unpacks to more than the limits.
    """
    from pyarrow import ArrowException, parquet, types

    try:
        with parquet.ParquetFile(opened) as file:
            schema = file.schema_arrow
            metadata = file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            sizes = [group.total_byte_size for group in groups]
            packed = _packed_bytes(groups)
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise _parquet_error(path, "not a Parquet file", error) from error
    Unpacking(file_path(str(path)), limits).add(sum(sizes), packed)
    if schema.names.count(column) != 1:
        what = "several columns" if column in schema.names else "no column"
        raise DataError(
            f"{path}: {what} {column!r} (available: {', '.join(schema.names[:8])}); set --text-key"
        )
    # Every row would be dropped. A column that has only nulls here may be text in other files.
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if str(kind) not in ("string", "large_string", "string_view", "null"):
        raise DataError(f"{path}: column {column!r} is {kind}, not text (string); set --text-key")
    return sizes
