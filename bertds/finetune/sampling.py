"""Takes a random sample of a split: the only place where rows are dropped on request.

Task files are often sorted by label or source, so that their first rows are not representative.
"""

from __future__ import annotations

import random
from collections import Counter

from bertds.display.words import listed
from bertds.errors import DataError
from bertds.finetune.records import TextRow
from bertds.finetune.task_data import DataOptions, Rows
from bertds.finetune.tasks import Task

SEED = 42
"""Seed of the sample. It differs from that of training: all trials of a task use the same rows."""


def limit_of(options: DataOptions, split: str) -> int:
    """Return the requested number of rows of a split; 0 = all."""
    limits = {"train": options.max_train_rows, "dev": options.max_dev_rows}
    return limits.get(split, options.max_test_rows)


def sample_places(count: int, limit: int) -> list[int]:
    """Return the row numbers of a sample, in their order in the file.

    Args:
        count: number of rows.
        limit: size of the sample; 0 = all rows.
    """
    if not limit or limit >= count:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), limit))


def sample_rows(rows: Rows, limit: int) -> Rows:
    """Return ``limit`` rows drawn at random, in their order in the file; 0 = all."""
    return [rows[place] for place in sample_places(len(rows), limit)]  # type: ignore[return-value]


def check_labels(task: Task, rows: Rows, labels: tuple[str, ...], limit: int, where: str) -> None:
    """Check that each label of a classification has a training row.

    Args:
        task: the task; only classifications are checked.
        rows: the training rows.
        labels: the names of the labels.
        limit: of the sample; 0 = the whole file.
        where: the file, for the message.

    Raises:
        DataError: labels without a row; they are named.
    """
    if task.kind != "classification" or not labels:
        return
    seen = Counter(row.label for row in rows if isinstance(row, TextRow))
    missing = [name for number, name in enumerate(labels) if not seen[number]]
    if not missing:
        return
    named = listed([repr(name) for name in missing], 5)
    what = "label" if len(missing) == 1 else "labels"
    if limit:
        raise DataError(
            f"{where}: the sample of {limit} rows contains none with the {what} {named}, so the "
            "model could not learn it; raise --max-train-rows"
        )
    raise DataError(
        f"{where}: no row has the {what} {named}, so the model could not learn it; check the file"
    )
