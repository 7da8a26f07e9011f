"""Finds the files of a task, locally or on the Hub, and reads them into rows."""

from __future__ import annotations

from pathlib import Path

from bertds.display.words import count
from bertds.errors import ConfigError, DataError
from bertds.finetune.readers.conll import (
    is_nemo_text,
    label_list,
    read_conll,
    read_nemo,
    read_ner_jsonl,
    unseen_types,
)
from bertds.finetune.readers.squad import read_squad, refuse_unanswerable
from bertds.finetune.readers.text import read_glue_tsv, read_own
from bertds.finetune.records import BadRows, Sentence, extension, find_file
from bertds.finetune.sampling import check_labels, limit_of, sample_rows
from bertds.finetune.task_data import DataOptions, Rows, Split, TaskData
from bertds.finetune.tasks import Files, Task
from bertds.system.logs import log


def load_task(task: Task, options: DataOptions) -> TaskData:
    """Read a task's splits.

    Raises:
        DataError: a file is missing or malformed, or a label does not occur in training.
    """
    # A dataset on the Hub, or saved by its library, has its own splits.
    root = Path(options.data)
    if (options.data and not root.exists()) or (root / "dataset_dict.json").is_file():
        from bertds.finetune.readers.hub import load_hub_task

        for option, file in (
            ("train", options.train_file),
            ("dev", options.dev_file),
            ("test", options.test_file),
        ):
            if file:
                raise ConfigError(
                    f"--{option} {file} cannot be combined with --data {options.data}, which has "
                    "its own splits; omit one of them"
                )

        data = load_hub_task(task, options)
        check_types(task, data)
        return data
    if options.no_test and options.test_file:
        raise ConfigError("--no-test and --test cannot be combined")
    if task.folder and (root / task.folder).is_dir():
        root = root / task.folder
    # Files: the training split first, because it defines the labels.
    data = TaskData(Split("train", []), [], [], task.labels)
    train = _find(root, task.train[0], options.train_file)
    if train is None:
        tried = ", ".join(task.train[0].names)
        raise DataError(f"{options.data or '--train'}: no training file; looked for {tried}")
    data.train = Split("train", _read(task, train, "train", options, data))
    limit = limit_of(options, "train")
    check_labels(task, data.train.rows, data.labels, limit, str(train))
    # Splits to score or predict; a task may have several of each (MNLI).
    scored = [(task.dev, options.dev_file, "dev"), (task.test, options.test_file, "test")]
    for files, given, split in scored[:1] if options.no_test else scored:
        for place in files:
            path = _find(root, place, given)
            if path is None:
                continue
            if split == "dev" and path == train:
                log.warning("%s: scored on its own training data", path)
            name = path.name.split(".")[0] if len(files) > 1 else split
            rows = _read(task, path, split, options, data)
            getattr(data, split).append(Split(name, rows, place.submission))
            if given:
                break
    if not data.dev:
        raise DataError(
            f"{options.data or '--dev'}: no file to score on; looked for "
            f"{', '.join(name for place in task.dev for name in place.names)} (or give --dev FILE)"
        )
    if options.max_test_rows and not data.test:
        log.warning("--max-test-rows has no effect: there is no test file")
    check_types(task, data)
    return data


def _find(root: Path, files: Files, given: str) -> Path | None:
    if given:
        path = Path(given)
        if not path.is_file():
            problem = "is a folder; give a file" if path.is_dir() else "no such file"
            raise DataError(f"{path}: {problem}")
        return path
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give single files with --train, --dev and --test")
    return find_file(root, files.names)


def _read(task: Task, path: Path, split: str, options: DataOptions, data: TaskData) -> Rows:
    """Read one file, and take a sample of it if requested."""
    rows = sample_rows(_read_all(task, path, split, options, data), limit_of(options, split))
    if task.kind == "ner" and split == "train":
        data.labels = label_list(rows)  # type: ignore[arg-type]
        if data.labels == ("O",):
            raise DataError(f"{path}: contains no entities, so there is nothing to learn")
    return rows


def _read_all(task: Task, path: Path, split: str, options: DataOptions, data: TaskData) -> Rows:
    data.sources[split if split not in data.sources else path.name] = str(path)
    if task.kind == "qa":
        questions, bad = read_squad(path, split=split)
        data.left_out += bad.summary()
        if task.name == "squad" and split != "test":
            refuse_unanswerable(questions, path)
        return questions
    if task.kind == "ner":
        return _read_ner(path, split, data)
    # GLUE files have fixed columns; other files are the user's own.
    if task.text and task.folder:
        rows, bad = read_glue_tsv(path, task, split=split)
        data.left_out += bad.summary()
        return rows
    rows, data.labels = read_own(
        path,
        split=split,
        labels=data.labels,
        regression=task.kind == "regression",
        text_column=options.text_column,
        pair_column=options.pair_column,
        label_column=options.label_column,
    )
    return rows


def _read_ner(path: Path, split: str, data: TaskData) -> list[Sentence]:
    bad = BadRows(path, tolerated=True)
    if extension(path) == ".jsonl":
        sentences = read_ner_jsonl(path, split=split)
    elif is_nemo_text(path):
        sentences, bad = read_nemo(path, split=split)
    else:
        sentences, bad = read_conll(path, split=split)
    data.left_out += bad.summary()
    return sentences


def check_types(task: Task, data: TaskData) -> None:
    """Report entity types that are scored but do not occur in training; they count as misses."""
    if task.kind != "ner":
        return
    for split in [*data.dev, *data.test]:
        for kind, lines in unseen_types(split.rows, data.labels).items():  # type: ignore[arg-type]
            line = (
                f"{split.name}: entity type {kind!r} does not occur in the training data, but "
                f"occurs in {count(len(lines), 'sentence')} here, the first at line {lines[0]}; "
                "these entities are scored as missed"
            )
            log.warning("%s", line)
            data.left_out.append(line)
