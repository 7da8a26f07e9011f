"""Datasets of the datasets library, saved in a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bertds.cli import main
from bertds.errors import DataError
from bertds.finetune.load import load_task
from bertds.finetune.task_data import DataOptions, TaskData
from bertds.finetune.tasks import TASKS

OWN = TASKS["text-classification"]


def save(folder: Path, columns: dict[str, list], classes: list[str] | None = None) -> Path:
    """Save a dataset whose splits have the same rows; ``classes`` are the names of the labels."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    if classes:
        name = datasets.ClassLabel(names=classes)
        tagged = "ner_tags" in columns
        column = "ner_tags" if tagged else "label"
        table = table.cast_column(column, datasets.Sequence(name) if tagged else name)
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(folder)
    return folder


def load(folder: Path, **columns: str) -> TaskData:
    return load_task(OWN, DataOptions(data=str(folder), **columns))


def finetune(task: str, model: Path, out: Path, *options: str) -> dict:
    fast = ("--learning-rate", "5e-3", "--epochs", "6", "--batch-size", "8", "--max-length", "16")
    command = ["--task", task, "--model", str(model), "--out", str(out), *fast, *options]
    assert main(["finetune", *command]) == 0
    return json.loads((out / "results.json").read_text())


def test_a_saved_dataset_is_learned(tiny_bert: Path, tmp_path: Path) -> None:
    rows = {"sentence": ["bad film", "good film"] * 40, "label": [0, 1] * 40}
    data = save(tmp_path / "data", rows, ["neg", "pos"])
    for task, labels in (("sst2", ["0", "1"]), ("text-classification", ["neg", "pos"])):
        found = finetune(task, tiny_bert, tmp_path / task, "--data", str(data))
        assert found["labels"] == labels
        assert found["scores"]["dev"]["accuracy"]["mean"] == 1.0


def test_a_declared_label_without_rows_is_ignored(tmp_path: Path) -> None:
    rows = {"text": ["a", "b"], "label": [1, 2]}
    data = load(save(tmp_path / "data", rows, ["unused", "neg", "pos"]))
    assert data.labels == ("neg", "pos")
    assert [row.label for row in data.train.rows] == [0, 1]  # type: ignore[union-attr]


def test_numbers_are_no_names_of_classes(tiny_bert: Path, tmp_path: Path) -> None:
    scores = [0.5, -1.0] * 24
    rows = {"text": ["good film", "bad plot"] * 24, "rank": scores}
    folder = save(tmp_path / "data", rows)
    options = DataOptions(data=str(folder), label_column="rank")
    data = load_task(replace(OWN, kind="regression"), options)
    assert [row.label for row in data.train.rows] == scores  # type: ignore[union-attr]
    given = ("--data", str(folder), "--regression", "--label-column", "rank")
    found = finetune("text-classification", tiny_bert, tmp_path / "out", *given)
    assert found["labels"] == [] and found["scores"]["dev"]["pearson"]["mean"] > 0.9


@pytest.mark.parametrize(
    ("labels", "classes"), [([0, -1, 1], ["neg", "pos"]), ([0, None, 1], None)]
)
def test_a_row_without_a_label_is_refused(
    labels: list[int | None], classes: list[str] | None, tmp_path: Path
) -> None:
    folder = save(tmp_path / "data", {"text": ["a", "b", "c"], "label": labels}, classes)
    with pytest.raises(DataError, match="train, row 1: has no label"):
        load(folder)


def test_columns_are_chosen_as_in_a_file(tmp_path: Path) -> None:
    rows = {"text": ["a", None], "label": [-1, 1], "body": ["c", "d"]}
    folder = save(tmp_path / "data", rows)
    data = load(folder, text_column="body")
    assert [row.text for row in data.train.rows] == ["c", "d"]  # type: ignore[union-attr]
    assert data.labels == ("-1", "1")
    for columns, message in (
        ({}, "train, row 1: column 'text' is None"),
        ({"text_column": "title"}, "train: no column 'title' for the text"),
        ({"text_column": "body", "pair_column": "body"}, "'body' is used twice"),
        ({"text_column": "body", "label_column": "x"}, "no column 'x' for the label"),
    ):
        with pytest.raises(DataError, match=message):
            load(folder, **columns)


@pytest.mark.parametrize(
    ("tags", "classes", "found"),
    [([[0, -1]], ["O", "B-X"], "-1"), ([[0, 1]], None, "0"), ([["O", "X"]], None, "'X'")],
)
def test_what_is_no_tag_is_refused(
    tags: list[list[int | str]], classes: list[str] | None, found: str, tmp_path: Path
) -> None:
    """A number of -1 was the last of the names."""
    folder = save(tmp_path / "data", {"tokens": [["a", "b"]], "ner_tags": tags}, classes)
    with pytest.raises(DataError, match=f"train, row 0: {found} is not a tag"):
        load_task(TASKS["ner"], DataOptions(data=str(folder)))


def test_questions_are_checked_like_those_of_a_file(tmp_path: Path) -> None:
    def answers(text: str, start: int) -> dict[str, list]:
        return {"text": [text], "answer_start": [start]}

    given = [answers("cat", 4)] * 150 + [answers("dog", 4)]
    ids = [str(number) for number in range(len(given))]
    rows = {"id": ids, "question": ["who?"] * 151, "context": ["the cat sat"] * 151}
    folder = save(tmp_path / "data", {**rows, "answers": given})
    data = load_task(TASKS["squad"], DataOptions(data=str(folder)))
    # A wrong offset would teach a wrong span; scores do not use it.
    assert len(data.train.rows) == 150 and len(data.dev[0].rows) == 151
    assert "train, question 150: answer 'dog' is not at position 4" in data.left_out[0]

    none: dict[str, list] = {"text": [], "answer_start": []}
    folder = save(tmp_path / "v2", {**rows, "answers": [*given[:150], none]})
    with pytest.raises(DataError, match=r"train: the question '150' has no answer.*squad_v2"):
        load_task(TASKS["squad"], DataOptions(data=str(folder)))
    assert len(load_task(TASKS["squad_v2"], DataOptions(data=str(folder))).train.rows) == 151
