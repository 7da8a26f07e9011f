from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bertds.cli import main
from bertds.errors import DataError
from bertds.finetune.predict_inputs import read_texts

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "paris",
    "is",
    "in",
    "france",
    "where",
    "the",
    "city",
    "##s",
    ".",
    "?",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny random model of each kind."""
    import transformers

    root = tmp_path_factory.mktemp("models")
    for name in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"):
        torch.manual_seed(3)
        config = transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            **({} if name.startswith("Q") else {"id2label": {0: "O", 1: "B-X", 2: "I-X"}}),
        )
        model = getattr(transformers, f"BertFor{name}")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
        (root / name / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return root


TEXTS = ["paris is in france .", "the city", "in the citys paris is where ?", "france"]


def texts(tmp_path: Path, lines: list[str]) -> str:
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "in.txt")


def output(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_fill_mask_agrees_with_transformers(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import pipeline

    lines = ["paris is in [MASK] .", "the [MASK] is [MASK]"]
    assert (
        main(
            [
                "predict",
                "--task",
                "fill-mask",
                "--model",
                str(models / "MaskedLM"),
                "--input",
                texts(tmp_path, lines),
                "--top",
                "3",
            ]
        )
        == 0
    )
    answers = output(capsys)
    theirs = pipeline("fill-mask", model=str(models / "MaskedLM"), top_k=3)(lines)
    assert [w for w, _ in answers[0]["masks"][0]] == [a["token_str"] for a in theirs[0]]
    assert answers[0]["masks"][0][0][1] == pytest.approx(theirs[0][0]["score"], abs=1e-4)
    assert len(answers[1]["masks"]) == 2


def test_classification_from_standard_input_agrees(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import pipeline

    folder = str(models / "SequenceClassification")
    stream = io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    assert (
        main(["predict", "--task", "text-classification", "--model", folder, "--batch-size", "2"])
        == 0
    )
    for ours, theirs in zip(output(capsys), pipeline("text-classification", model=folder)(TEXTS)):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["score"], abs=1e-4)


def test_tags_and_answers(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer, BertForQuestionAnswering, BertForTokenClassification

    folder = models / "TokenClassification"
    assert (
        main(
            ["predict", "--task", "ner", "--model", str(folder), "--input", texts(tmp_path, TEXTS)]
        )
        == 0
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForTokenClassification.from_pretrained(folder).eval()
    for text, answer in zip(TEXTS, output(capsys), strict=True):
        encoded = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        best = model(**encoded).logits[0].argmax(-1).tolist()
        places = encoded.word_ids()
        firsts = [places.index(n) for n in range(len(text.split()))]
        assert answer["tags"] == [["O", "B-X", "I-X"][best[p]] for p in firsts]

    question = {"id": "q", "question": "where is paris ?", "context": "paris is in france ."}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    folder = models / "QuestionAnswering"
    out = tmp_path / "answers.json"
    assert (
        main(
            [
                "predict",
                "--task",
                "qa",
                "--model",
                str(folder),
                "--input",
                str(tmp_path / "q.jsonl"),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    encoded = tokenizer(
        question["question"], question["context"], return_tensors="pt", return_offsets_mapping=True
    )
    offsets = encoded.pop("offset_mapping")[0].tolist()
    logits = BertForQuestionAnswering.from_pretrained(folder).eval()(**encoded)
    inside = [i for i, s in enumerate(encoded.sequence_ids()) if s == 1]
    start, end = max(
        ((i, j) for i in inside for j in inside if i <= j),
        key=lambda pair: float(logits.start_logits[0, pair[0]] + logits.end_logits[0, pair[1]]),
    )
    expected = question["context"][offsets[start][0] : offsets[end][1]]
    assert json.loads(out.read_text()) == {"q": expected}


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_embeddings_do_not_depend_on_padding(models: Path, tmp_path: Path, pooling: str) -> None:
    from transformers import AutoTokenizer, BertModel

    folder = models / "SequenceClassification"
    for name in ("v.npy", "v.parquet"):
        assert (
            main(
                [
                    "predict",
                    "--task",
                    "embeddings",
                    "--model",
                    str(folder),
                    "--input",
                    texts(tmp_path, TEXTS),
                    "--out",
                    str(tmp_path / name),
                    "--pooling",
                    pooling,
                    "--batch-size",
                    "3",
                ]
            )
            == 0
        )
    vectors = np.load(tmp_path / "v.npy")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        BertModel.from_pretrained(folder).eval(),
    )
    for text, vector in zip(TEXTS, vectors, strict=True):
        result = model(**tokenizer(text, return_tensors="pt"))
        hidden = result.last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": result.pooler_output[0]}
        assert np.allclose(vector, expected[pooling].detach().numpy(), atol=1e-5)
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["id"] == ["0", "1", "2", "3"]
    assert np.array_equal(np.array(table["embedding"], np.float32), vectors)


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_blank_lines_keep_their_place(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or everything after them would shift against the input."""
    for task, model, lines in (
        ("text-classification", "SequenceClassification", TEXTS),
        ("ner", "TokenClassification", TEXTS),
        ("fill-mask", "MaskedLM", ["paris is [MASK] .", "[MASK]"]),
    ):
        command = ["predict", "--task", task, "--model", str(models / model), "--input"]
        assert main([*command, texts(tmp_path, lines)]) == 0
        plain = output(capsys)
        assert main([*command, texts(tmp_path, [lines[0], "  ", *lines[1:]])]) == 0
        printed = capsys.readouterr()
        spaced = [json.loads(line) for line in printed.out.splitlines()]
        without_id = [{k: v for k, v in row.items() if k != "id"} for row in plain]
        assert [{k: v for k, v in row.items() if k != "id"} for row in spaced[:1] + spaced[2:]] == (
            without_id
        )
        assert "1 blank line, the first is line 2" in printed.err
        assert task == "ner" or [row["id"] for row in spaced[:3]] == ["0", "1", "2"]
    vectors = tmp_path / "v.npy"
    assert (
        main(
            [
                "predict",
                "--task",
                "embeddings",
                "--model",
                str(models / "MaskedLM"),
                "--input",
                texts(tmp_path, ["paris", "", "france"]),
                "--out",
                str(vectors),
            ]
        )
        == 0
    )
    assert np.load(vectors).shape == (3, 16)


def test_published_files_are_distinguished_from_sentences(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file with columns is no list of two-word sentences, and SQuAD goes through a pipe too."""
    command = ["predict", "--task", "ner", "--model", str(models / "TokenClassification")]
    assert main([*command, "--input", texts(tmp_path, ["paris is", "the city"])]) == 0
    expected = output(capsys)
    columns = "paris\tO\nis\tO\n\nthe\tO\ncity\tO\n"
    (tmp_path / "devel.tsv").write_text(columns)
    (tmp_path / "eng.testb").write_text(
        "-DOCSTART- -X- O O\n\nparis NNP I-NP I-LOC\nis V V O\n\nthe D D O\ncity N N O\n"
    )
    rows = [{"tokens": row["words"]} for row in expected]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("devel.tsv", "eng.testb", "s.jsonl"):
        assert main([*command, "--input", str(tmp_path / name)]) == 0
        assert output(capsys) == expected
    given(monkeypatch, columns)
    assert main(command) == 0
    assert output(capsys) == expected
    given(monkeypatch, columns + "alone\n")
    assert main(command) == 2
    assert "standard input, line 6: 1 column, but" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("a O\n".encode("utf-16-le"))))
    assert main(command) == 2
    assert "standard input: is UTF-16, judging by its zero bytes" in capsys.readouterr().err

    qa = [{"id": "q", "question": "where is paris ?"}]
    squad = {"data": [{"paragraphs": [{"context": "paris is in france .", "qas": qa}]}]}
    (tmp_path / "q.json").write_text(json.dumps(squad, indent=1))
    command = ["predict", "--task", "qa", "--model", str(models / "QuestionAnswering")]
    assert main([*command, "--input", str(tmp_path / "q.json")]) == 0
    answer = output(capsys)
    given(monkeypatch, (tmp_path / "q.json").read_text())
    assert main(command) == 0
    assert output(capsys) == answer and answer[0]["id"] == "q"


def test_bad_input(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = texts(tmp_path, TEXTS)
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    for options, message in (
        (["fill-mask", "MaskedLM", plain], "line 1: no [MASK]"),
        (["ner", "MaskedLM", plain], "is a BertForMaskedLM, which does not have the required head"),
        (["embeddings", "MaskedLM", plain], "embeddings are written to a .npy or .parquet file"),
        (["qa", "QuestionAnswering", str(tmp_path / "bad.jsonl")], "line 1: not a JSON object"),
        (
            ["text-classification", "SequenceClassification", str(tmp_path / "empty.txt")],
            "contains no text",
        ),
        (["text-classification", "SequenceClassification", "none.txt"], "none.txt: cannot be read"),
        (["fill-mask", "MaskedLM", plain, "--top", "99999"], "--top 99999: the vocabulary has"),
        (["fill-mask", "MaskedLM", plain, "--out", str(tmp_path)], "is a folder; give the name"),
        (["fill-mask", "MaskedLM", plain, "--out", f"{plain}/x"], "is not a folder"),
        # Mistakes in the input are reported before the model is loaded.
        (["fill-mask", "no/such/model", "none.txt"], "none.txt: cannot be read"),
    ):
        task, model, source, *more = options
        given = ["--model", str(models / model), "--input", source, *more]
        assert main(["predict", "--task", task, *given]) == 2
        assert message in capsys.readouterr().err


def test_a_text_without_a_mask_gets_an_error_in_its_place(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are answered; the exit code says that not all was done."""
    lines = ["paris is in [MASK] .", "paris is in france .", "the [MASK]"]
    words = ["predict", "--task", "fill-mask", "--model", str(models / "MaskedLM"), "--input"]
    assert main([*words, texts(tmp_path, lines)]) == 2
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [sorted(answer) for answer in answers] == [
        ["id", "masks"],
        ["error", "id"],
        ["id", "masks"],
    ]
    assert answers[1]["error"] == "line 2: no [MASK] in the first 32 tokens"
    assert "error: line 2: no [MASK]" in printed.err
    assert main([*words, texts(tmp_path, ["paris", "is", "[MASK]"])]) == 2
    assert "2 texts have no answer; the first: line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "text\n", "a.csv: no rows"),
        ("A.CSV", "text\ngood\n", ["good"]),
        ("a.json", '{"text": "good"}\n{"text": 5}', ["good", "5"]),
        ("a.json", '[{"text": "good"}]', r"a.json, line 1: not a JSON object"),
        ("a.jsonl", '{"text": ["good"]}', r"line 1: column 'text' is \['good'\], which is neither"),
        ("a.txt", "good\r\n\r\nbad", ["good", "", "bad"]),
    ],
)
def test_texts_of_odd_files(
    tmp_path: Path, name: str, text: str, expected: str | list[str]
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_texts(str(tmp_path / name))
    else:
        assert [row.text for row in read_texts(str(tmp_path / name))] == expected
