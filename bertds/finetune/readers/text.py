"""Reads GLUE's published TSV files, and users' own CSV, TSV and JSONL files.

GLUE files have no quoting: a quote character is text, and a reader that interprets quotes swallows
the rows up to the next one (MRPC loses hundreds). CoLA has a header only in its test file; MRPC
starts with a byte order mark; some QQP training rows lack columns.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

from bertds.display.words import count, listed
from bertds.errors import DataError
from bertds.finetune.readers.columns import ID_NAMES, USUAL_NAMES, choose_column, own_columns
from bertds.finetune.records import (
    BYTE_ORDER_MARK,
    BadRows,
    TextRow,
    check_cells,
    extension,
    lines_of,
    read_text,
)
from bertds.finetune.tasks import Kind, Task
from bertds.system.json_fields import parse_text_json
from bertds.system.logs import log

_LONGEST_FIELD = 2**31 - 1
HEADERLESS = ("text", "label")
"""Columns of NeMo's text classification files."""


def read_glue_tsv(path: Path, task: Task, *, split: str) -> tuple[list[TextRow], BadRows]:
    """Read one GLUE file.

    Args:
        path: plain or gzip.
        task: defines the columns.
        split: train, dev or test; a test file needs no labels.

    Returns:
        The rows in the file's order, and the malformed ones.

    Raises:
        DataError: a column is missing, or rows are malformed; see :class:`BadRows`.
    """
    lines = lines_of(path)
    bad = BadRows(path, tolerated=split == "train")
    # CoLA has no header in its training and dev files, but has one in its test file.
    if task.columns and split != "test":
        columns = list(task.columns)
    else:
        first = next(lines, None)
        if first is None:
            raise DataError(f"{path}: empty file")
        columns = first[1].split("\t")
    places = _places(path, columns, task, split)
    rows: list[TextRow] = []
    # A row with another number of values cannot be assigned to the columns with certainty.
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(columns):
            bad.add(number, f"{count(len(values), 'column')}, expected {len(columns)}")
            continue
        row = _row(values, places, task, number, len(rows) + len(bad.rows), split, bad)
        if row is not None:
            rows.append(row)
    bad.finish(len(rows))
    return rows, bad


def _places(path: Path, columns: list[str], task: Task, split: str) -> dict[str, int]:
    wanted = {
        "text": task.text,
        "pair": task.pair,
        "label": None if split == "test" else task.label,
    }
    places = {}
    for role, name in wanted.items():
        if name is None:
            continue
        if name not in columns:
            raise DataError(
                f"{path}, line 1: no column {name!r}; found {', '.join(map(repr, columns[:12]))}"
            )
        places[role] = columns.index(name)
    name = next((name for name in ("index", "id") if name in columns), None)
    if name is not None and split == "test":
        places["id"] = columns.index(name)
    return places


def _row(
    values: list[str],
    places: dict[str, int],
    task: Task,
    number: int,
    order: int,
    split: str,
    bad: BadRows,
) -> TextRow | None:
    text = values[places["text"]]
    pair = values[places["pair"]] if "pair" in places else None
    if split == "train" and (not text.strip() or (pair is not None and not pair.strip())):
        # Elsewhere an empty sentence keeps its place, so that predictions do not shift.
        bad.add(number, "a sentence is empty")
        return None
    label: int | float | None = None
    if "label" in places:
        try:
            label = parse_label(values[places["label"]], task.kind, task.labels)
        except ValueError as error:
            bad.add(number, str(error))
            return None
    row_id = values[places["id"]] if "id" in places else str(order)
    return TextRow(row_id, text, pair, label, number)


def parse_label(text: str, kind: Kind, labels: tuple[str, ...]) -> int | float:
    """Return a label's number, or the score of a regression task.

    Args:
        text: the label.
        kind: classification or regression.
        labels: of a classification, in the order of their numbers.

    Raises:
        ValueError: no such label; says which there are.
    """
    if kind == "regression":
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{text!r} is not a number") from None
        return value
    if text not in labels:
        raise ValueError(f"label {text!r} is not one of {listed(labels, 8)}")
    return labels.index(text)


# --------------------------------------------------------------------------------------------
# Own files
# --------------------------------------------------------------------------------------------


def read_records(path: Path, *, named: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """Read a CSV, TSV or JSONL file into (line, record).

    CSV has the quoting of RFC 4180; TSV has none (a quote is text), as in GLUE. A TSV whose first
    line names none of the usual columns is NeMo's: ``text<TAB>label`` without a header.

    Args:
        path: .csv, .tsv or .jsonl, also gzipped.
        named: whether columns are given by name, so that the first line must be a header.

    Raises:
        DataError: an unbalanced quote, a row with another number of columns, a line that is not
            a JSON object: named by line.
    """
    kind = extension(path)
    if kind in (".jsonl", ".json"):
        return _read_jsonl(path)
    if kind == ".tsv":
        table = [(number, line.split("\t")) for number, line in lines_of(path) if line]
    elif kind == ".csv":
        table = _read_csv(path)
    else:
        raise DataError(f"{path}: must be a .csv, .tsv or .jsonl file")
    if not table:
        raise DataError(f"{path}: empty file")
    # Without a header the first line is data, so it is kept as a row too.
    header = [column.strip() for column in table[0][1]]
    if kind == ".tsv" and not named and _is_headerless(table):
        header = list(HEADERLESS[: len(header)])
        table = [table[0], *table]
    if len(set(header)) != len(header):
        raise DataError(f"{path}, line 1: a column name occurs twice")
    records = []
    for number, values in table[1:]:
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {number}: {count(len(values), 'column')}, but the header has "
                f"{len(header)}"
            )
        records.append((number, dict(zip(header, values))))
    return records


def _is_headerless(table: list[tuple[int, list[str]]]) -> bool:
    """Return whether the first line is already a row of NeMo's ``text<TAB>label`` files.

    It is if it has one or two columns without any of the usual names, and its label occurs again in
    a later row, unlike the name of a column. A file that has only texts, to predict, must have
    another row.
    """
    first = table[0][1]
    if len(first) > len(HEADERLESS) or len(table) < 2:
        return False
    if USUAL_NAMES.intersection(column.strip().lower() for column in first):
        return False
    if len(first) == 1:
        return " " in first[0].strip()
    labels = {values[1] for _, values in table[1:] if len(values) == 2}
    return first[1] in labels or _is_number(first[1])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_csv(path: Path) -> list[tuple[int, list[str]]]:
    # Keep line breaks: a quoted field may contain some.
    # By default a field has at most 131,072 characters, fewer than a long document.
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    table: list[tuple[int, list[str]]] = []
    started = 1
    spanning: list[int] = []
    try:
        for values in reader:
            if values:
                table.append((started, values))
            if reader.line_num > started:
                spanning.append(started)
            started = reader.line_num + 1
    except csv.Error as error:
        # An unbalanced quote swallows everything up to the next one: report where the row began.
        raise DataError(
            f"{path}, line {started}: {error} (possibly an unbalanced quote; a quote inside a "
            "field must be doubled)"
        ) from None
    if spanning:
        # Two unbalanced quotes make valid CSV, in which the rows between them are one field.
        log.warning(
            "%s: %s with line breaks inside quotes (from line %s)",
            path,
            count(len(spanning), "row"),
            listed(spanning, 5),
        )
    return table


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for number, line in lines_of(path):
        if not line.strip():
            continue
        try:
            record = parse_text_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        records.append((number, record))
    return records


def read_own(
    path: Path,
    *,
    split: str,
    labels: tuple[str, ...] = (),
    regression: bool = False,
    text_column: str = "",
    pair_column: str = "",
    label_column: str = "",
) -> tuple[list[TextRow], tuple[str, ...]]:
    """Read a user's own file.

    Args:
        path: .csv, .tsv or .jsonl, optionally gzipped.
        split: train, dev or test.
        labels: those of the training data; empty = take them from this file, sorted.
        regression: labels are numbers to predict.
        text_column: name of the text's column; "" = one of the usual names.
        pair_column: name of the second text's column.
        label_column: name of the label's column.

    Returns:
        The rows, and the labels.

    Raises:
        DataError: a column or a label is missing, or a label was never seen in training (by line).
    """
    # Find the columns, by the given or the usual names.
    given = (text_column, pair_column, label_column)
    records = read_records(path, named=any(given))
    if not records:
        raise DataError(f"{path}: no rows")
    columns = list(records[0][1])
    text, pair, label = own_columns(path, columns, given, split)
    index = choose_column(path, columns, "", ID_NAMES, "id")
    needed = None if split == "test" else label
    used = (text, pair, needed)
    # An empty cell is more likely a fault of the file than an empty text.
    for number, record in records:
        for column in used:
            if column is not None and record.get(column) in (None, ""):
                raise DataError(f"{path}, line {number}: column {column!r} is empty")
            if column is not None and record[column] == BYTE_ORDER_MARK:
                raise DataError(
                    f"{path}, line {number}: a lone byte order mark (U+FEFF) in column {column!r}"
                )
        check_cells(f"{path}, line {number}", record, used)
        # Predictions are written as a table of one line per row.
        for column in (index, needed):
            if column is not None and re.search(r"[\t\r\n]", str(record.get(column)).strip()):
                raise DataError(
                    f"{path}, line {number}: column {column!r} contains a tab or a line break "
                    f"({str(record[column])!r:.60})"
                )
    # Without given labels, those of this file are all there are.
    if not labels and not regression and label is not None:
        labels = tuple(sorted({_label_text(record[label]) for _, record in records}))
        if len(labels) < 2:
            raise DataError(f"{path}: only one label, {labels[0]!r}, so there is nothing to learn")
    kind: Kind = "regression" if regression else "classification"
    rows = []
    # Convert labels to class numbers or values; a test file may have none.
    for order, (number, record) in enumerate(records):
        value: int | float | None = None
        if label is not None and record.get(label) not in (None, ""):
            try:
                value = parse_label(_label_text(record[label]), kind, labels)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
        rows.append(
            TextRow(
                str(record[index]) if index else str(order),
                str(record[text]),
                str(record[pair]) if pair else None,
                value,
                number,
            )
        )
    return rows, labels


def _label_text(value: object) -> str:
    """Return a label as text. In JSON, 1 and 1.0 are the same number, so they are one label."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
