"""Reads tasks with the datasets library: from the Hugging Face hub or a saved DatasetDict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.display.words import count
from bertds.errors import DataError, short_reason
from bertds.finetune.readers.columns import own_columns
from bertds.finetune.readers.conll import TAG, iob2, label_list
from bertds.finetune.readers.squad import check_questions, refuse_unanswerable
from bertds.finetune.readers.text import parse_label
from bertds.finetune.records import Question, Sentence, TextRow, check_cells
from bertds.finetune.sampling import check_labels, limit_of, sample_places
from bertds.finetune.task_data import DataOptions, Rows, Split, TaskData
from bertds.finetune.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub_task(task: Task, options: DataOptions) -> TaskData:
    """Read a task with the datasets library.

    ``--data hub`` reads the task's standard dataset, ``--data OWNER/NAME[:CONFIGURATION]`` another
    one. A folder written by ``DatasetDict.save_to_disk`` is read as it is.

    Raises:
        DataError: the dataset cannot be loaded (for example offline), or lacks a split or a column.
    """
    splits = _load(task, options.data)
    data = TaskData(Split("train", []), [], [], task.labels, sources={"hub": options.data})
    roles = [(task.train, "train"), (task.dev, "dev"), (task.test, "test")]
    for files, role in roles[:2] if options.no_test else roles:
        limit = limit_of(options, role)
        for place in files:
            table = splits.get(place.hub_split)
            if table is None:
                continue
            where = f"{options.data}, {place.hub_split}"
            rows = _rows(task, table, where, role, data, sample_places(len(table), limit), options)
            # MNLI has two dev and test sets, so its splits keep their own names.
            name = place.hub_split if len(files) > 1 else role
            if role == "train":
                check_labels(task, rows, data.labels, limit, where)
                data.train = Split("train", rows)
            else:
                getattr(data, role).append(Split(name, rows, place.submission))
    if not data.train.rows or not data.dev:
        raise DataError(
            f"{options.data}: requires the splits train and validation, but has {[*splits]}"
        )
    return data


def _load(task: Task, name: str) -> Mapping[str, Any]:
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()  # each of its tries to reach the hub is a line
    if Path(name).is_dir():
        return datasets.load_from_disk(name)
    repository, configuration = task.hub if name == "hub" else (name, "")
    if ":" in repository:
        repository, configuration = repository.split(":", 1)
    if not repository:
        raise DataError(f"--data {name}: no such folder, and {task.name} has no dataset on the Hub")
    if "/" not in repository:
        raise DataError(f"--data {name}: no such folder (datasets on the Hub are named OWNER/NAME)")
    try:
        return datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # whatever a missing network makes the library raise
        raise DataError(
            f"--data {name}: neither a folder nor a dataset that can be loaded "
            f"({short_reason(error)})"
        ) from None


def _rows(
    task: Task,
    table: Dataset,
    where: str,
    role: str,
    data: TaskData,
    places: list[int],
    options: DataOptions,
) -> Rows:
    """Return the rows at ``places``; labels are those of the whole table."""
    if task.kind == "qa":
        chosen = zip(places, table.select(places), strict=True)
        found = (_question(record, where, number) for number, record in chosen)
        questions, bad = check_questions(found, where, split=role)
        data.left_out += bad.summary()
        if task.name == "squad" and role != "test":
            refuse_unanswerable(questions, where)
        return questions
    if task.kind == "ner":
        return _sentences(table, where, role, data, places)
    return _texts(task, table, where, role, data, places, options)


def _columns(
    task: Task, table: Dataset, where: str, role: str, options: DataOptions
) -> tuple[str, str | None, str | None]:
    """Return the columns of text, second text and label."""
    columns = table.column_names
    if not task.folder:  # the user's own dataset
        given = (options.text_column, options.pair_column, options.label_column)
        return own_columns(where, columns, given, role)
    text, pair, label = (
        task.hub_columns.get(name or "", name) for name in (task.text, task.pair, task.label)
    )
    for name in (text, pair, None if role == "test" else label):
        if name is not None and name not in columns:
            raise DataError(f"{where}: no column {name!r}; found {columns}")
    return str(text), pair, label


def _texts(
    task: Task,
    table: Dataset,
    where: str,
    role: str,
    data: TaskData,
    places: list[int],
    options: DataOptions,
) -> list[TextRow]:
    text, pair, label = _columns(task, table, where, role, options)
    label_names = getattr(table.features.get(label), "names", None)
    # The labels of the user's own data are taken from the training split.
    if not data.labels and task.kind == "classification" and role == "train":
        values = table.unique(label)
        if label_names:  # a declared label may have no rows
            data.labels = tuple(n for place, n in enumerate(label_names) if place in values)
        else:
            data.labels = tuple(sorted(str(value) for value in values if value is not None))
    rows = []
    for number, record in zip(places, table.select(places), strict=True):
        check_cells(f"{where}, row {number}", record, (text, pair))
        value: int | float | None = None
        if role != "test":
            value = _label(task, record[label], label_names, data, f"{where}, row {number}")
        second = str(record[pair]) if pair else None
        rows.append(
            TextRow(str(record.get("idx", number)), str(record[text]), second, value, number)
        )
    return rows


def _label(
    task: Task,
    value: int | float | str | None,
    names: Sequence[str] | None,
    data: TaskData,
    where: str,
) -> int | float:
    """Return a label's number, or the score of a regression task."""
    # The library marks a missing class with -1.
    if value is None or (names and value == -1):
        raise DataError(f"{where}: has no label")
    if names and task.labels:
        # The labels of the files and of the Hub have the same order (GLUE: names or 0/1).
        return int(value)
    try:
        return parse_label(names[int(value)] if names else str(value), task.kind, data.labels)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _sentences(
    table: Dataset, where: str, role: str, data: TaskData, places: list[int]
) -> list[Sentence]:
    column = next((n for n in ("ner_tags", "tags", "labels") if n in table.column_names), None)
    if "tokens" not in table.column_names or column is None:
        raise DataError(f"{where}: no columns tokens and ner_tags; found {table.column_names}")
    inner = getattr(table.features[column], "feature", None)
    names = getattr(inner, "names", None)
    sentences = []
    for number, record in zip(places, table.select(places), strict=True):
        # Tags are stored as numbers with names, or directly as text.
        tags = [_tag(t, names, f"{where}, row {number}") for t in record[column]]
        if not record["tokens"]:
            continue
        if len(tags) != len(record["tokens"]):
            raise DataError(
                f"{where}, row {number}: {count(len(record['tokens']), 'token')}, but "
                f"{count(len(tags), 'tag')}"
            )
        sentences.append(Sentence(list(record["tokens"]), iob2(tags), number))
    if role == "train":
        data.labels = label_list(sentences)
    return sentences


def _tag(value: int | str, names: Sequence[str] | None, where: str) -> str:
    if names and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    if not isinstance(value, str) or not TAG.fullmatch(value):
        raise DataError(f"{where}: {value!r} is not a tag (O, B-TYPE, I-TYPE)")
    return value


def _question(record: dict[str, Any], where: str, number: int) -> Question:
    try:
        texts, starts = record["answers"]["text"], record["answers"]["answer_start"]
        answers = list(zip(texts, map(int, starts), strict=True))
        return Question(str(record["id"]), record["question"].strip(), record["context"], answers)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}, row {number}: not a SQuAD row ({error!r})") from None
