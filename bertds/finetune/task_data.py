"""The data of a task, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from bertds.finetune.records import Question, Sentence, TextRow

Rows = list[TextRow] | list[Sentence] | list[Question]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Location of the data, and the number of rows to use."""

    data: str
    """A folder, or a dataset of the Hugging Face Hub."""
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
    """Whether test files are ignored."""


@dataclass(slots=True)
class Split:
    """The rows of one file."""

    name: str
    """dev, dev_mismatched, test, ...: the key of its scores."""
    rows: Rows
    submission: str = ""


@dataclass(slots=True)
class TaskData:
    """All data of a task: for training, scoring and prediction."""

    train: Split
    dev: list[Split]
    test: list[Split]
    labels: tuple[str, ...]
    left_out: list[str] = field(default_factory=list)
    """One line for each malformed training row, and each entity type that is not in training."""
    sources: dict[str, str] = field(default_factory=dict)
