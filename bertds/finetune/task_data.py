"""The data of a task, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from bertds.finetune.records import Question, Sentence, TextRow

Rows = list[TextRow] | list[Sentence] | list[Question]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Where the data is located and how much of it to take."""

    data: str
    """A folder, or a data set of the Hugging Face hub."""
    train_file: str = ""
    dev_file: str = ""
    test_file: str = ""
    text_column: str = ""
    pair_column: str = ""
    label_column: str = ""
    regression: bool = False
    max_train_rows: int = 0
    max_dev_rows: int = 0
    max_test_rows: int = 0
    no_test: bool = False
    """Whether test files are left alone."""


@dataclass(slots=True)
class Split:
    """One file's rows."""

    name: str
    """dev, dev_mismatched, test, ...: the key of its scores."""
    rows: Rows
    submission: str = ""


@dataclass(slots=True)
class TaskData:
    """All that a task trains on, is scored on and predicts."""

    train: Split
    dev: list[Split]
    test: list[Split]
    labels: tuple[str, ...]
    left_out: list[str] = field(default_factory=list)
    """One line per malformed training row, and per entity type never seen in training."""
    sources: dict[str, str] = field(default_factory=dict)
