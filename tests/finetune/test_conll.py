from __future__ import annotations

from pathlib import Path

import pytest

from bertds.errors import DataError
from bertds.finetune.load import load_task
from bertds.finetune.readers.conll import (
    format_conll,
    iob2,
    label_list,
    read_conll,
    read_nemo,
    read_ner_jsonl,
    unseen_types,
)
from bertds.finetune.records import Sentence
from bertds.finetune.task_data import DataOptions
from bertds.finetune.tasks import TASKS


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
                "O",
                "B-LOC",
                "I-LOC",
                "B-MISC",
                "I-MISC",
                "B-ORG",
                "I-ORG",
                "B-PER",
                "I-PER",
            )
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
        ("word", "line 2: 1 column, but 2 in the first line"),
        ("word\t", "line 2: 1 column, but"),
        ("\tO", "line 2: 1 column, but"),
        ("two words\tx\tO", "line 2: 3 columns"),
        ("word\tPER", "line 2: 'PER' is not a tag"),
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
    with pytest.raises(DataError, match="line 1: 2 tokens, but 1 tag"):
        read_ner_jsonl(bad, split="train")


def test_predictions_are_written_in_conlleval_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\na X I-P\nb X O\n\nc X O\n"
    sentences, _ = read_conll(write(tmp_path / "x", text), split="dev")
    written = format_conll(sentences, [["B-P", "O"], ["B-Q"]])
    assert written == "-DOCSTART- O O\n\na B-P B-P\nb O O\n\nc O B-Q\n\n"


def test_comment_lines_are_not_words(cases: Path) -> None:
    for name in ("train", "dev"):
        sentences, bad = read_conll(cases / "conll-comments" / f"{name}.conll", split=name)
        assert [(s.words, s.tags, s.line) for s in sentences] == [
            (["John", "lives", "in"], ["B-PER", "O", "O"], 2),
            (["Rome"], ["B-LOC"], 8),
        ]
        assert bad.rows == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# sent_id = 1\n# text = a b\na\tO\nb\tB-X\n\n# newpar\nc\tO\n", [["a", "b"], ["c"]]),
        ("#begin document (x); part 0\na O\n\n#end document\n", [["a"]]),
        ("a O\n\n# O\n1 O\n", [["a"], ["#", "1"]]),  # the word "#"
        ("# O\n1 O\n", [["#", "1"]]),
        ("# _ _ O\n1 _ _ O\n\n#tag _ _ B-X\n", [["#", "1"], ["#tag"]]),
        ("a O\n# O\nb O\n", [["a", "#", "b"]]),
    ],
)
def test_comments_and_the_word_hash(tmp_path: Path, text: str, words: list[list[str]]) -> None:
    sentences, _ = read_conll(write(tmp_path / "x.conll", text), split="dev")
    assert [s.words for s in sentences] == words
    assert all(len(s.words) == len(s.tags or ()) for s in sentences)


def test_a_malformed_word_is_not_a_comment(tmp_path: Path) -> None:
    for text in ("a _ O\n# _ PER\n", "a O\n\n#tag\n"):
        with pytest.raises(DataError, match=r"line [23]: "):
            read_conll(write(tmp_path / "x.conll", text), split="dev")


def test_words_of_columns_without_tags_may_have_comments(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x", "# id 1 domain=en\nJohn _ _\n#one _ _\n\n# id 2 domain=en\nRome _ _\n"
    )
    sentences, _ = read_conll(path, split="test", tagged=False)
    assert [s.words for s in sentences] == [["John", "#one"], ["Rome"]]


def test_nemos_two_files(cases: Path, tmp_path: Path) -> None:
    data = load_task(TASKS["ner"], DataOptions(data=str(cases / "nemo-formats" / "tc")))
    assert data.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    first = data.train.rows[0]
    assert isinstance(first, Sentence) and first.words == [
        "Ada",
        "moved",
        "to",
        "San",
        "Remo",
        "yesterday",
        ".",
    ]
    assert first.tags == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O", "O"]
    assert (len(data.train.rows), len(data.dev[0].rows)) == (4, 4)

    text = write(tmp_path / "text_dev.txt", "a b\nc d\n")
    with pytest.raises(DataError, match=r"labels_dev\.txt, which contains the tags, is missing"):
        read_nemo(text, split="dev")
    write(tmp_path / "labels_dev.txt", "O O\n")
    with pytest.raises(DataError, match=r"2 lines, but labels_dev\.txt has 1"):
        read_nemo(text, split="dev")
    write(tmp_path / "labels_dev.txt", "O O\nO\n")
    with pytest.raises(DataError, match=r"line 2: 2 words, but 1 tag in labels_dev\.txt"):
        read_nemo(text, split="dev")
    write(tmp_path / "labels_dev.txt", "O O\nO PER\n")
    with pytest.raises(DataError, match=r"line 2: 'PER' in labels_dev\.txt is not a tag"):
        read_nemo(text, split="dev")
    test = write(tmp_path / "text_test.txt", "a b\n")
    assert read_nemo(test, split="test")[0][0].tags is None


def test_wnut17_is_found_by_its_published_names(tmp_path: Path) -> None:
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        write(tmp_path / name, "@paulwalk\tO\nLondon\tB-location\n\n#ok\tO\n\n")
    data = load_task(TASKS["ner"], DataOptions(data=str(tmp_path)))
    assert [Path(path).name for path in data.sources.values()] == [
        "wnut17train.conll",
        "emerging.dev.conll",
        "emerging.test.annotated",
    ]
    assert data.labels == ("O", "B-location", "I-location") and len(data.test[0].rows) == 2


def test_a_lone_byte_order_mark_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dev.conll"
    path.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match="contains only a byte order mark"):
        read_conll(path, split="dev")
    path = write(path, "a O\n\n\ufeff O\n")
    with pytest.raises(DataError, match=r"line 3: a lone byte order mark \(U\+FEFF\) as the word"):
        read_conll(path, split="dev")
    path.write_bytes("a O\n".encode("utf-16"))
    with pytest.raises(
        DataError, match="is UTF-16, judging by its byte order mark; save it as UTF-8"
    ):
        read_conll(path, split="dev")
    path.write_bytes("a O\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="is UTF-16, judging by its zero bytes; save it as UTF-8"):
        read_conll(path, split="dev")
