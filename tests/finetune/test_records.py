"""Task files of others: refused in one line, and nothing small becomes something huge."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bertds.errors import DataError
from bertds.finetune.predict_inputs import read_questions, read_texts
from bertds.finetune.readers.squad import read_squad
from bertds.finetune.readers.text import read_records
from bertds.finetune.records import FREE_BYTES, read_text


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl.gz"])
def test_a_gzip_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    # Members one after the other: one letter, a gigabyte and a half.
    path.write_bytes(gzip.compress(b"a" * (1 << 20)) * 1500)
    for read in (read_records, lambda path: read_texts(str(path))):
        with pytest.raises(DataError, match=r"unpacks to more than 100 times its .* unpack it"):
            read(path)


def test_ordinary_text_is_far_from_the_bound(tmp_path: Path) -> None:
    text = "text,label\n" + "the same row again and again,x\n" * (FREE_BYTES // 30)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_text(tmp_path / "a.csv.gz") == text
    (tmp_path / "a.csv").write_text(text * 2)  # what is not packed has no bound
    assert read_text(tmp_path / "a.csv") == text * 2


def test_a_damaged_gzip_file_is_one_line(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(os.urandom(5000)))
    data[10:20] = b"\xff" * 10  # a block of a type that does not exist
    for name, content in (("flipped", data), ("cut", data[:-200]), ("none", b"text,label\n")):
        (tmp_path / f"{name}.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_records(tmp_path / f"{name}.csv.gz")


@pytest.mark.parametrize("answers", [5, "text", {"text": ["a"], "answer_start": [0]}])
def test_answers_that_are_not_a_list_are_named(tmp_path: Path, answers: Any) -> None:
    question = {"id": "1", "question": "q", "answers": answers}
    paragraph = {"context": "a", "qas": [question]}
    (tmp_path / "q.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(DataError, match=r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: 'answers' is not"):
        read_squad(tmp_path / "q.json", split="train")


@pytest.mark.parametrize(
    "line", ["5", "null", "[1]", '"data"', '{"question": 5, "context": "a"}', "[" * 5000]
)
def test_a_line_that_is_not_a_question_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    for source in (str(tmp_path / "q.jsonl"), "-"):
        with pytest.raises(DataError, match="line 1: not a JSON object with question and context"):
            read_questions(source)
