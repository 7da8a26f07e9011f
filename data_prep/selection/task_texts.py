"""Reads the texts of a downstream task's file: GLUE, CoNLL, SQuAD, JSON lines, plain text.

The kind of a file is recognized by its name and its contents:

| file | texts |
|---|---|
| ``.json`` with ``data[].paragraphs[]`` (SQuAD) | each context, each question |
| ``.jsonl`` | each string in a record, at any depth |
| ``.tsv``, ``.csv`` (GLUE) | each cell; quotation marks are text |
| columns that end in tags such as ``B-PER``, ``O`` (CoNLL) | each sentence, from the first column |
| anything else | each line |

All may be compressed (gzip, bzip2, xz, zstd).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bertds.errors import DataError
from bertds.system.json_fields import parse_text_json
from data_prep.sources.blocks import whole_blocks

_TAG = re.compile(r"^(?:O|[BIESLU]-\S+)$")
_COLUMNS_PROBED = 200


def task_texts(path: Path) -> Iterator[str]:
    """Yield the texts of one file.

    Raises:
        DataError: the file is missing, a folder, not UTF-8, or JSON of another layout.
    """
    if path.is_dir():
        raise DataError(f"--decontaminate {path}: is a folder; give the files of its test split")
    if not path.is_file():
        raise DataError(f"--decontaminate {path}: no such file")
    try:
        text = b"".join(block for block, _ in whole_blocks(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--decontaminate {path}: not UTF-8 ({error})") from error
    name = re.sub(r"\.(gz|bz2|zst|xz)$", "", path.name.lower())
    lines = text.splitlines()
    if name.endswith(".json"):
        yield from _squad(path, text)
    elif name.endswith((".jsonl", ".ndjson")):
        yield from _records(path, lines)
    elif _has_tags(lines):
        yield from _tagged(lines)
    elif name.endswith((".tsv", ".csv")):
        separator = "\t" if name.endswith(".tsv") else ","
        for line in lines:
            yield from line.split(separator)
            if separator == ",":
                yield line  # a comma inside a cell
    else:
        yield from lines


def _squad(path: Path, text: str) -> Iterator[str]:
    try:
        paragraphs = [p for article in parse_text_json(text)["data"] for p in article["paragraphs"]]
        for paragraph in paragraphs:
            yield paragraph["context"]
            for question in paragraph["qas"]:
                yield question["question"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--decontaminate {path}: not JSON in SQuAD's form, data[].paragraphs[].context "
            f"({error!r}); give other JSON as .jsonl, with one record per line"
        ) from error


def _records(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield from _strings(parse_text_json(line))
        except ValueError as error:
            raise DataError(
                f"--decontaminate {path}: line {number} is not JSON ({error})"
            ) from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _has_tags(lines: list[str]) -> bool:
    rows = [line.split() for line in lines[:_COLUMNS_PROBED] if line.strip()]
    tagged = sum(len(row) >= 2 and bool(_TAG.match(row[-1])) for row in rows)
    return bool(rows) and tagged >= 0.9 * len(rows)


def _tagged(lines: list[str]) -> Iterator[str]:
    words: list[str] = []
    for line in [*lines, ""]:
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            words.append(columns[0])
        elif words:
            yield " ".join(words)
            words = []
