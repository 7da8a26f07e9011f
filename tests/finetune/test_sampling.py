"""Samples are random, the same each time, and say which label they miss."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bertds.cli import main
from bertds.errors import DataError
from bertds.finetune.load import load_task
from bertds.finetune.sampling import sample_places
from bertds.finetune.task_data import DataOptions, TaskData
from bertds.finetune.tasks import TASKS


def sorted_rows(count: int) -> list[tuple[str, str]]:
    """Texts sorted by label: the first half is ``neg``."""
    return [(f"text {n}", "neg" if n < count // 2 else "pos") for n in range(count)]


def sampled(task: str, folder: Path, **limits: int) -> TaskData:
    return load_task(TASKS[task], DataOptions(data=str(folder), **limits))


def write_own(folder: Path, suffix: str, count: int = 200) -> None:
    rows = sorted_rows(count)
    text = "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows)
    if suffix != "jsonl":
        mark = "," if suffix == "csv" else "\t"
        text = f"text{mark}label\n" + "".join(f"{t}{mark}{label}\n" for t, label in rows)
    for name in ("train", "dev", "test"):
        (folder / f"{name}.{suffix}").write_text(text)


def write_glue(folder: Path) -> None:
    lines = [f"{text}\t{int(label == 'pos')}" for text, label in sorted_rows(200)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    test = [f"{n}\t{text}" for n, (text, _) in enumerate(sorted_rows(200))]
    (folder / "test.tsv").write_text("\n".join(["index\tsentence", *test]) + "\n")


def write_ner(folder: Path, suffix: str) -> None:
    kinds = [f"B-{'LOC' if n < 100 else 'PER'}" for n in range(200)]
    for name in ("train", "dev", "test"):
        if suffix == "jsonl":
            rows = [json.dumps({"tokens": [f"w{n}"], "tags": [tag]}) for n, tag in enumerate(kinds)]
            (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        else:
            rows = [f"w{n}\t{tag}\n" for n, tag in enumerate(kinds)]
            (folder / f"{name}.conll").write_text("\n".join(rows))


def write_squad(folder: Path) -> None:
    questions = [
        {"id": str(n), "question": "who?", "answers": [{"text": "a", "answer_start": 0}]}
        for n in range(200)
    ]
    content = {"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": questions}]}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (folder / name).write_text(json.dumps(content))


def write_hub(folder: Path) -> None:
    import datasets

    rows = sorted_rows(200)
    table = datasets.Dataset.from_dict(
        {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    )
    datasets.DatasetDict({"train": table, "validation": table, "test": table}).save_to_disk(folder)


def places(rows: list) -> list[int]:
    """Where each row of a sample was in its file, from 0."""
    found = []
    for row in rows:
        text = getattr(row, "text", None) or getattr(row, "id", None) or row.words[0]
        found.append(int("".join(c for c in text if c.isdigit())))
    return found


@pytest.mark.parametrize(
    ("task", "layout"),
    [
        ("text-classification", "csv"),
        ("text-classification", "tsv"),
        ("text-classification", "jsonl"),
        ("text-classification", "hub"),
        ("sst2", "glue"),
        ("ner", "conll"),
        ("ner", "jsonl"),
        ("squad", "squad"),
    ],
)
def test_every_reader_takes_the_same_random_rows(task: str, layout: str, tmp_path: Path) -> None:
    if layout == "glue":
        write_glue(tmp_path)
    elif layout == "hub":
        write_hub(tmp_path)
    elif layout == "squad":
        write_squad(tmp_path)
    elif task == "ner":
        write_ner(tmp_path, layout)
    else:
        write_own(tmp_path, layout)
    data = sampled(task, tmp_path, max_train_rows=40, max_dev_rows=30, max_test_rows=20)
    assert places(data.train.rows) == sample_places(200, 40)
    assert places(data.dev[0].rows) == sample_places(200, 30)
    if data.test:
        assert places(data.test[0].rows) == sample_places(200, 20)
    if task != "squad":
        assert len(data.labels) > 1 and max(places(data.train.rows)) > 100


def test_samples_are_uniform_and_in_the_order_of_the_file() -> None:
    halves = Counter(place < 500 for place in sample_places(1000, 400))
    assert 160 < halves[True] < 240
    assert sample_places(1000, 400) == sorted(set(sample_places(1000, 400)))
    assert sample_places(5, 0) == sample_places(5, 9) == [0, 1, 2, 3, 4]


def test_a_file_sorted_by_label_trains_all_classes(cases: Path) -> None:
    path = str(cases / "sorted-by-label.csv")
    options = DataOptions(data="", train_file=path, dev_file=path, max_train_rows=100)
    data = load_task(TASKS["text-classification"], options)
    counts = Counter(row.label for row in data.train.rows)  # type: ignore[union-attr]
    # Its first 100 rows are all "neg".
    assert data.labels == ("mid", "neg", "pos") and set(counts) == {0, 1, 2}
    assert min(counts.values()) > 20


def test_a_label_without_a_row_is_refused(tmp_path: Path) -> None:
    rare = "text,label\n" + "x,usual\n" * 300 + "y,rare\n"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(rare)
    with pytest.raises(DataError, match="sample of 20 rows contains none with the label 'rare'"):
        sampled("text-classification", tmp_path, max_train_rows=20)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "a film\t1\n" * 8)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na film\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv: no row has the label '0'"):
        sampled("sst2", tmp_path)


def test_test_files_can_be_skipped(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_own(tmp_path, "csv", 20)
    (tmp_path / "test.csv").write_text("broken")
    base = [
        "finetune",
        "--task",
        "text-classification",
        "--model",
        str(tiny_bert),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "1",
        "--learning-rate",
        "1e-3",
        "--max-length",
        "8",
    ]
    assert main([*base, "--no-test"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["rows"] == {"train": 20, "dev": 20} and found["data"]["no_test"] is True
    assert main([*base, "--no-test", "--test", str(tmp_path / "test.csv")]) == 2
    assert main([*base, "--max-test-rows", "-1"]) == 2
    assert "--max-test-rows -1: must be 0 (all rows) or more" in capsys.readouterr().err
