from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bertds.errors import DataError
from bertds.finetune.readers.text import read_glue_tsv, read_own, read_records
from bertds.finetune.tasks import TASKS
from bertds.system.logs import start_logging


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def test_published_files_are_read_whole(shared_data: Path) -> None:
    expected = {
        "cola": ("CoLA", 8551, 1043, 1063),
        "sst2": ("SST-2", 67349, 872, 1821),
        "mrpc": ("MRPC", 3668, 408, 1725),
    }
    for name, (folder, *counts) in expected.items():
        for split, count in zip(("train", "dev", "test"), counts):
            path = shared_data / "glue" / folder / f"{split}.tsv"
            rows, bad = read_glue_tsv(path, TASKS[name], split=split)
            assert (len(rows), bad.rows) == (count, [])
            assert all((row.label is None) == (split == "test") for row in rows)


def test_byte_order_mark_quotes_and_windows_line_ends(tmp_path: Path) -> None:
    text = "\ufeff" + HEADER.replace("\n", "\r\n") + '1\t1\t2\t"a b\tc "d"\r\n0\t3\t4\te"\tf\r\n'
    rows, bad = read_glue_tsv(write(tmp_path / "x.tsv", text), TASKS["mrpc"], split="dev")
    assert [(r.text, r.pair, r.label, r.line) for r in rows] == [
        ('"a b', 'c "d"', 1, 2),
        ('e"', "f", 0, 3),
    ]
    assert bad.rows == []


def test_unicode_line_separators_do_not_end_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "sentence\tlabel\na\u2028b\x85c\t1\nd\t0\n")
    rows, _ = read_glue_tsv(path, TASKS["sst2"], split="dev")
    assert [row.text for row in rows] == ["a\u2028b\x85c", "d"]


def test_a_short_training_row_is_omitted_and_named_without_shifting_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"1\t{n}\t{n}\ta{n}\tb{n}" for n in range(300)]
    lines[6] = "1\t6\t6\ta6"
    lines[9] = "maybe\t9\t9\ta9\tb9"
    path = write(tmp_path / "train.tsv", HEADER + "\n".join(lines) + "\n")
    rows, bad = read_glue_tsv(path, TASKS["mrpc"], split="train")
    assert len(rows) == 298 and [line for line, _ in bad.rows] == [8, 11]
    assert all(row.text == f"a{row.line - 2}" and row.pair == f"b{row.line - 2}" for row in rows)
    with pytest.raises(DataError, match="line 8: 4 columns, expected 5"):
        read_glue_tsv(path, TASKS["mrpc"], split="dev")


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", HEADER + "1\ta\tb\n" * 20)
    with pytest.raises(DataError, match="20 of 20 rows are malformed, the first at line 2"):
        read_glue_tsv(path, TASKS["mrpc"], split="train")
    with pytest.raises(DataError, match="no column '#1 String'"):
        read_glue_tsv(write(tmp_path / "y", "a\tb\n1\t2\n"), TASKS["mrpc"], split="train")


def test_an_unknown_label_is_refused_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", "sentence\tlabel\na\t1\nb\t2\n")
    with pytest.raises(DataError, match="line 3: label '2' is not one of 0, 1"):
        read_glue_tsv(path, TASKS["sst2"], split="dev")
    score = write(tmp_path / "s.tsv", "sentence1\tsentence2\tscore\na\tb\t3.5\na\tb\tnan\n")
    with pytest.raises(DataError, match="line 3: 'nan' is not a number"):
        read_glue_tsv(score, TASKS["stsb"], split="dev")


def test_mnli_columns_are_found_by_name(tmp_path: Path) -> None:
    header = (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    )
    row = "0\t1\t2\tg\tp\tp\tp\tp\tprem\thyp\tneutral\tcontradiction\n"
    rows, _ = read_glue_tsv(write(tmp_path / "x", header + row), TASKS["mnli"], split="train")
    assert (rows[0].text, rows[0].pair, rows[0].label) == ("prem", "hyp", 2)


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"sentence\tlabel\nok\t1\nbad \xff\t0\n")
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        read_glue_tsv(path, TASKS["sst2"], split="dev")


def test_own_csv_jsonl_tsv_and_gzip_agree(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'text,label\n"x, ""y""\nz",good\nw,bad\n')
    write(
        tmp_path / "a.jsonl",
        '{"text": "x, \\"y\\"\\nz", "label": "good"}\n\n{"text": "w", "label": "bad"}\n',
    )
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.csv", "a.jsonl", "b.jsonl.gz"):
        rows, labels = read_own(tmp_path / name, split="train")
        assert labels == ("bad", "good")
        assert [(r.text, r.label) for r in rows] == [('x, "y"\nz', 1), ("w", 0)]
    assert [line for line, _ in read_records(tmp_path / "a.csv")] == [2, 4]


def test_rows_between_two_unbalanced_quotes_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a file is valid CSV with fewer rows than its author thinks."""
    start_logging(is_main=True)
    path = write(tmp_path / "a.csv", 'text,label\nu,a\n"x,a\ny,b\nz",b\nw,a\n')
    assert len(read_own(path, split="train")[0]) == 3
    assert "a.csv: 1 row with line breaks inside quotes (from line 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'text,label\nx,a\n"y,b\nz,a\nw,b\n', "line 3: .*unbalanced quote"),
        ("a.csv", 'text,label\nx,a\n"y"z,b\n', "line 3: .*unbalanced quote"),
        ("a.csv", "text,label\nx,a\ny,b,c\n", "line 3: 3 columns, but the header has 2"),
        ("a.csv", "text,label\nx,a\ny,\n", "line 3: column 'label'"),
        ("a.csv", "text,text\nx,a\n", "line 1: a column name occurs twice"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "x", "label": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.csv", "text,label\nx,a\ny,a\n", "only one label, 'a'"),
        ("a.csv", "body,label\nx,a\n", "no text column"),
        ("a.csv", "", "a.csv: empty file"),
        ("a.txt", "text,label\nx,a\n", "must be a .csv, .tsv or .jsonl file"),
    ],
)
def test_malformed_own_files_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_own(write(tmp_path / name, text), split="train")


def test_a_column_has_one_use(tmp_path: Path) -> None:
    """A label as the second text would give the answer away."""
    path = write(tmp_path / "a.csv", "text,label\nx,a\ny,b\n")
    for columns in ({"pair_column": "label"}, {"label_column": "text"}, {"pair_column": "text"}):
        with pytest.raises(DataError, match=r"a.csv: column '\w+' is used twice"):
            read_own(path, split="train", **columns)
    assert len(read_own(path, split="train", text_column="text", label_column="label")[0]) == 2


def test_a_label_never_seen_in_training_is_refused_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.csv", "text,label\nx,good\ny,ugly\n")
    with pytest.raises(DataError, match="line 3: label 'ugly' is not one of bad, good"):
        read_own(path, split="dev", labels=("bad", "good"))


def test_nemos_file_without_a_header(cases: Path) -> None:
    folder = cases / "nemo-formats"
    rows, labels = read_own(folder / "train.tsv", split="train")
    assert len(rows) == 16 and labels == ("0", "1")
    assert (rows[0].text, rows[0].label, rows[0].line) == ("a good film number 1", 1, 1)
    assert len(read_own(folder / "dev.tsv", split="dev", labels=labels)[0]) == 16


def test_headers_are_distinguished_from_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "review\tstars\nfine film\tgood\nbad film\tbad\n")
    with pytest.raises(DataError, match=r"no text column .* found \['review', 'stars'\]"):
        read_own(path, split="train")
    assert len(read_own(path, split="train", text_column="review", label_column="stars")[0]) == 2
    path = write(tmp_path / "x.tsv", "fine film\t4.5\nbad film\t1\n")
    assert [r.label for r in read_own(path, split="train", regression=True)[0]] == [4.5, 1.0]
    path = write(tmp_path / "test.tsv", "a fine film\na bad film\n")
    assert [r.text for r in read_own(path, split="test")[0]] == ["a fine film", "a bad film"]


def test_a_lone_byte_order_mark_in_a_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label\na,0\n\ufeff,1\n")
    with pytest.raises(DataError, match=r"line 3: a lone byte order mark .* in column 'text'"):
        read_own(path, split="train")


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    text = "word " * 40_000
    path = write(tmp_path / "a.csv", f'text,label\n"{text}",a\ny,b\n')
    assert [row.text for row in read_own(path, split="train")[0]] == [text, "y"]


def test_equal_numbers_of_json_are_one_label(tmp_path: Path) -> None:
    lines = [
        '{"text": "x", "label": 1}',
        '{"text": "y", "label": 1.0}',
        '{"text": "z", "label": 2}',
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    rows, labels = read_own(path, split="train")
    assert labels == ("1", "2") and [row.label for row in rows] == [0, 0, 1]
    path = write(tmp_path / "b.jsonl", '{"text": "x", "label": 1.5}\n{"text": "y", "label": 2.0}')
    assert read_own(path, split="train")[1] == ("1.5", "2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'text,label\nx,"a\tb"\ny,c\n', r"line 2: column 'label' contains a tab"),
        ("a.csv", 'text,label\nx,a\ny,"b\nc"\n', r"line 3: column 'label' contains a tab or a l"),
        ("a.csv", 'id,text,label\n"1\n2",x,a\n3,y,b\n', r"line 2: column 'id' contains a tab"),
        (
            "a.jsonl",
            '{"text": ["x"], "label": 1}',
            r"line 1: column 'text' is \['x'\], which is nei",
        ),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}', r"column 'label' is \{'a': 1\}, which is"),
    ],
)
def test_cells_that_predictions_cannot_contain_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_own(write(tmp_path / name, text), split="train")


def test_extensions_may_be_in_capitals(tmp_path: Path) -> None:
    """As some programs of Windows write them."""
    text = "text,label\nx,a\ny,b\n"
    assert len(read_own(write(tmp_path / "A.CSV", text), split="train")[0]) == 2
    (tmp_path / "B.TSV.GZ").write_bytes(gzip.compress(text.replace(",", "\t").encode()))
    assert len(read_own(tmp_path / "B.TSV.GZ", split="train")[0]) == 2
