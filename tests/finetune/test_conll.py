from __future__ import annotations

from pathlib import Path

import pytest

from bertds.errors import DataError
from bertds.finetune.readers.conll import (
    format_conll,
    iob2,
    label_list,
    read_conll,
    read_ner_jsonl,
    unseen_types,
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),  # IOB1
        ("I-A B-A I-A", "B-A B-A I-A"),  # two adjacent entities in IOB1
        ("I-A I-B", "B-A B-B"),  # another type starts another entity
        ("B-A I-A O B-B", "B-A I-A O B-B"),  # IOB2 stays
        ("S-A B-A E-A S-A", "B-A B-A I-A B-A"),  # IOBES
        ("O O", "O O"),
    ],
)
def test_schemes_become_iob2(tags: str, expected: str) -> None:
    assert iob2(tags.split()) == expected.split()


def test_published_files(shared_data: Path) -> None:
    counts = {"eng.train": (14041, 203621), "eng.testa": (3250, 51362), "eng.testb": (3453, 46435)}
    for name, (sentences, tokens) in counts.items():
        rows, bad = read_conll(shared_data / "ner" / "conll2003" / name, split="dev")
        assert (len(rows), sum(len(r.words) for r in rows)) == (sentences, tokens)
        assert bad.rows == []
        if name == "eng.train":
            assert label_list(rows) == (
                "O", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER",
            )  # fmt: skip
            entities = sum(tag[0] == "B" for row in rows for tag in row.tags or ())
            assert entities == 23499  # the published count (Tjong Kim Sang and De Meulder 2003)
            assert sum(row.after_document_start for row in rows) == 946
    rows, _ = read_conll(shared_data / "ner" / "ncbi-disease" / "train.tsv", split="train")
    assert (len(rows), sum(len(r.words) for r in rows)) == (5424, 135701)


def test_tabs_spaces_windows_ends_and_missing_last_newline(tmp_path: Path) -> None:
    spaces = read_conll(write(tmp_path / "a", "\ufeffa  X O\r\nb X I-P\r\n \r\nc X O"), split="dev")
    tabs = read_conll(write(tmp_path / "b", "a\tX\tO\nb\tX\tB-P\n\n\nc\tX\tO\n\n"), split="dev")
    assert [(s.words, s.tags) for s in spaces[0]] == [(s.words, s.tags) for s in tabs[0]]
    assert [s.line for s in tabs[0]] == [1, 5]


def test_words_with_strange_blanks_stay_one_word(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "a\u00a0b\tO\nc\u2028d\tO\n")
    assert read_conll(path, split="dev")[0][0].words == ["a\u00a0b", "c\u2028d"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("word", "line 2: 1 columns, 2 in the first line"),
        ("word\t", "line 2: 1 columns"),
        ("\tO", "line 2: 1 columns"),
        ("two words\tx\tO", "line 2: 3 columns"),
        ("word\tPER", "line 2: 'PER' is no tag"),
    ],
)
def test_a_malformed_row_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "dev.tsv", f"a\tO\n{line}\nc\tB-X\n")
    with pytest.raises(DataError, match=message):
        read_conll(path, split="dev")


def test_in_training_data_its_whole_sentence_is_left_out(tmp_path: Path) -> None:
    good = "a\tO\nb\tB-X\n\n"
    path = write(tmp_path / "train.tsv", good * 150 + "a\tO\nbroken\nc\tB-X\n\n" + good)
    sentences, bad = read_conll(path, split="train")
    assert len(sentences) == 151
    assert all(s.words == ["a", "b"] and s.tags == ["O", "B-X"] for s in sentences)
    assert [place for place, _ in bad.rows] == [452]


def test_orphans_of_an_iob2_file_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "bertds.finetune.readers.conll.log.warning",
        lambda text, *values: said.append(text % values),
    )
    path = write(tmp_path / "x", "a\tB-X\n\nb\tB-X\n\nc\tO\nd\tI-X\n")
    assert read_conll(path, split="dev")[0][2].tags == ["O", "B-X"]
    assert "1 of 3 entities of this IOB2 file start with I- (line 6)" in said[0]


def test_types_never_seen_in_training_are_named(tmp_path: Path) -> None:
    train, _ = read_conll(write(tmp_path / "t", "a\tB-X\n"), split="train")
    dev, _ = read_conll(write(tmp_path / "d", "a\tO\n\nb\tB-Y\n\nc\tB-Y\n"), split="dev")
    assert unseen_types(dev, label_list(train)) == {"Y": [3, 5]}


def test_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["I-X", "O"]}\n')
    assert read_ner_jsonl(path, split="train")[0].tags == ["B-X", "O"]
    bad = write(tmp_path / "y.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n')
    with pytest.raises(DataError, match="line 1: 2 tokens, 1 tags"):
        read_ner_jsonl(bad, split="train")


def test_predictions_are_written_in_conlleval_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\na X I-P\nb X O\n\nc X O\n"
    sentences, _ = read_conll(write(tmp_path / "x", text), split="dev")
    written = format_conll(sentences, [["B-P", "O"], ["B-Q"]])
    assert written == "-DOCSTART- O O\n\na B-P B-P\nb O O\n\nc O B-Q\n\n"
