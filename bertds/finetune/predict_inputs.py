"""Reads what ``bertds predict`` is given: texts, sentences, questions; a file or standard input."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from bertds.display.words import count
from bertds.errors import DataError
from bertds.finetune.readers.columns import PAIR_NAMES, TEXT_NAMES, choose_column
from bertds.finetune.readers.conll import DOCUMENT_START, read_conll, read_ner_jsonl
from bertds.finetune.readers.squad import questions_of, read_squad
from bertds.finetune.readers.text import read_records
from bertds.finetune.records import (
    Question,
    Sentence,
    TextRow,
    check_cells,
    decoded,
    extension,
    lines_of,
    numbered_lines,
)
from bertds.system.json_fields import parse_text_json
from bertds.system.logs import log


def _all_lines(source: str) -> list[tuple[int, str]]:
    if source != "-":
        return list(lines_of(Path(source)))
    # Bytes, since the terminal's own encoding need not be UTF-8.
    return list(numbered_lines(decoded(sys.stdin.buffer.read(), _name(source))))


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


def _in_place(source: str, lines: list[tuple[int, str]], what: str) -> list[tuple[int, str]]:
    """Return the lines, blank ones empty: they keep their place, or all after them would shift.

    Raises:
        DataError: there are only blank ones.
    """
    blank = [number for number, line in lines if not line.strip()]
    if len(blank) == len(lines):
        raise DataError(f"{_name(source)}: contains no {what}")
    if blank:
        log.warning(
            "%s: %s, the first is line %d; each gets an output line",
            _name(source),
            count(len(blank), "blank line"),
            blank[0],
        )
    return [(number, line if line.strip() else "") for number, line in lines]


def _is_table(source: str) -> bool:
    return extension(source) in (".csv", ".tsv", ".jsonl", ".json")


def read_texts(source: str) -> list[TextRow]:
    """Read texts: a line each, or the text column of a table.

    Raises:
        DataError: nothing there, or malformed (by line).
    """
    if not _is_table(source):
        numbered = _in_place(source, _all_lines(source), "text")
        rows = [
            TextRow(str(n), line, None, None, number) for n, (number, line) in enumerate(numbered)
        ]
    else:
        path, rows = Path(source), []
        records = read_records(path)
        if not records:
            raise DataError(f"{path}: no rows")
        columns = list(records[0][1])
        # Usual names of columns are tried, since predict has no options for them.
        text = choose_column(path, columns, "", TEXT_NAMES, "text")
        pair = choose_column(path, columns, "", PAIR_NAMES, "second text")
        if text is None:
            raise DataError(f"{path}: no text column ({', '.join(TEXT_NAMES)}); found {columns}")
        for n, (number, record) in enumerate(records):
            if not record.get(text) or (pair and record.get(pair) is None):
                raise DataError(f"{path}, line {number}: column {text!r} is empty")
            check_cells(f"{path}, line {number}", record, (text, pair))
            second = str(record[pair]) if pair else None
            rows.append(TextRow(str(record.get("id", n)), str(record[text]), second, None, number))
    if not rows:
        raise DataError(f"{source}: contains no text")
    return rows


def read_words(source: str) -> list[Sentence]:
    """Read sentences: words separated by blanks, CoNLL columns (the first), or JSONL with tokens.

    Columns are recognized by the file's name (.conll, .tsv), by ``-DOCSTART-`` or a tab in the
    first line.

    Raises:
        DataError: nothing there, or malformed (by line).
    """
    kind = extension(source)
    if kind == ".jsonl":
        return read_ner_jsonl(Path(source), split="test", tagged=False)
    if kind == ".csv":
        raise DataError(
            f"{source}: sentences must be given as text, CoNLL columns or .jsonl, not .csv"
        )
    lines = _all_lines(source)
    first = next((line for _, line in lines if line.strip()), "")
    if kind in (".conll", ".tsv") or first.startswith(DOCUMENT_START) or "\t" in first:
        return read_conll(Path(_name(source)), split="test", tagged=False, lines=lines)[0]
    numbered = _in_place(source, lines, "sentence")
    return [Sentence(line.split(), None, number) for number, line in numbered]


def read_questions(source: str) -> list[Question]:
    """Read SQuAD JSON, or JSON lines with ``question`` and ``context``.

    Raises:
        DataError: malformed (by line).
    """
    if extension(source) == ".json":
        return read_squad(Path(source), split="test")[0]
    lines = _all_lines(source)
    if source == "-":  # a whole SQuAD file?
        with suppress(ValueError):
            content = parse_text_json("\n".join(line for _, line in lines))
            if isinstance(content, dict) and "data" in content:
                return questions_of(content, Path(_name(source)), split="test")[0]
    questions = []
    for n, (number, line) in enumerate((number, line) for number, line in lines if line.strip()):
        try:
            record = parse_text_json(line)
            question, context = record["question"], record["context"]
            if not isinstance(question, str) or not isinstance(context, str):
                raise TypeError
            questions.append(Question(str(record.get("id", n)), question, context, []))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{_name(source)}, line {number}: not a JSON object with question and context"
            ) from None
    if not questions:
        raise DataError(f"{_name(source)}: contains no questions")
    return questions
