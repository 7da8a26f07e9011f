from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertds.cli import main
from bertds.finetune.glue_suite import average, table
from bertds.finetune.scores import (
    classification_scores,
    entity_scores,
    entity_scores_by_type,
    mean_and_spread,
    regression_scores,
)

FAST = ["--learning-rate", "5e-3", "--epochs", "6", "--batch-size", "8", "--max-length", "16"]


def finetune(task: str, model: Path, out: Path, *options: object) -> list[str]:
    """Return a whole command."""
    given = ["--task", task, "--model", model, "--out", out, *options]
    return ["finetune", *map(str, given)]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_sst2_is_learned_and_predicted_in_the_official_format(
    tiny_bert: Path, tiny_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = finetune("sst2", tiny_bert, out, "--data", tiny_sst2, *FAST, "--seeds", "1", "2")
    assert main(command) == 0
    found = results(out)
    assert found["scores"]["dev"]["accuracy"]["mean"] == 1.0
    assert [run["seed"] for run in found["runs"]] == [1, 2]
    assert found["rows"] == {"train": 96, "dev": 20, "test": 6}
    predictions = (out / "predictions" / "SST-2.tsv").read_text().splitlines()
    assert predictions == ["index\tprediction", *(f"{n}\t{n % 2}" for n in range(6))]
    printed = capsys.readouterr().out
    assert "sst2                 accuracy      100.00   0.00" in printed
    assert printed.endswith(f"wrote {out}; the model is in {out / 'model'}\n")

    from transformers import pipeline

    answer = pipeline("text-classification", model=str(out / "model"))("the film was good")
    assert answer[0]["label"] == "1"


def test_the_best_learning_rate_is_kept(tiny_bert: Path, tiny_sst2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rates = ["--learning-rate", "1e-9", "5e-3"]
    command = finetune("sst2", tiny_bert, out, "--data", tiny_sst2, *FAST, *rates, "--no-model")
    assert main(command) == 0
    assert results(out)["chosen_learning_rate"] == 5e-3
    assert not (out / "model").exists()


def test_the_glue_suite_runs_each_available_task_once(
    tiny_bert: Path, tiny_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = finetune("glue", tiny_bert, tmp_path / "out", "--data", tiny_sst2, *FAST)
    assert main(command) == 0
    stamp = (tmp_path / "out" / "sst2" / "results.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "out" / "sst2" / "results.json").stat().st_mtime_ns == stamp
    assert (tmp_path / "out" / "submission" / "SST-2.tsv").is_file()
    capsys.readouterr()
    for change, message in (
        (["--seeds", "7"], "was written with seeds=[42], but now seeds=[7]; choose another --out"),
        (["--weight-decay", "0.1"], "settings.weight_decay=0.01, but now"),
        (["--model", "other"], f"model={str(tiny_bert)!r}, but now model='other'"),
    ):
        assert main([*command, *change]) == 2  # no other run's scores under this one's name
        assert message in capsys.readouterr().err


def test_rte_starts_from_the_mnli_model(tiny_bert: Path, tmp_path: Path) -> None:
    header = "index\tsentence1\tsentence2\tgold_label"
    labels = ["entailment", "neutral", "contradiction"]
    for folder, names, kinds in (
        ("MNLI", ("train", "dev_matched", "dev_mismatched"), labels),
        ("RTE", ("train", "dev"), ["entailment", "not_entailment"]),
    ):
        (tmp_path / folder).mkdir()
        head = header if folder == "MNLI" else header.replace("gold_label", "label")
        for name in names:
            rows = [f"{n}\tgood film\tbad plot\t{kinds[n % len(kinds)]}" for n in range(12)]
            (tmp_path / folder / f"{name}.tsv").write_text("\n".join([head, *rows]) + "\n")
    out = tmp_path / "out"
    options = ["--data", tmp_path, *FAST, "--epochs", "1", "--mnli-first"]
    command = finetune("rte", tiny_bert, out, *options)
    assert main(command) == 0
    assert results(out)["model"] == str(tmp_path / "out-mnli" / "model")
    mnli = results(tmp_path / "out-mnli")
    assert set(mnli["scores"]) == {"dev_matched", "dev_mismatched"}
    assert (
        json.loads((out / "model" / "config.json").read_text())["id2label"]["1"] == "not_entailment"
    )


def test_ner_squad_and_regression_run_through(tiny_bert: Path, tmp_path: Path) -> None:
    ner = tmp_path / "ner"
    ner.mkdir()
    sentence = "ann\tI-PER\nwent\tO\nto\tO\nlondon\tI-LOC\n.\tO\n\nbob\tI-PER\nwas\tO\n\n"
    (ner / "train.txt").write_text(sentence * 20)
    (ner / "dev.txt").write_text(sentence.replace("I-LOC", "I-ZOO", 1) + sentence)
    assert main(finetune("ner", tiny_bert, tmp_path / "a", "--data", ner, *FAST)) == 0
    found = results(tmp_path / "a")
    assert found["scores"]["dev"]["f1"]["mean"] == pytest.approx(10 / 12)  # ZOO: missed, and LOC
    assert any("'ZOO' does not occur in the training data" in line for line in found["left_out"])
    lines = (tmp_path / "a" / "predictions" / "dev.conll").read_text().splitlines()
    assert lines[0] == "ann B-PER B-PER" and lines[3] == "london B-ZOO B-LOC"

    squad = tmp_path / "squad"
    squad.mkdir()
    qas = [
        {
            "id": f"{n}",
            "question": "where was ann ?",
            "is_impossible": bool(n % 2),
            "answers": [] if n % 2 else [{"text": "london", "answer_start": 12}],
        }
        for n in range(8)
    ]
    article = {"title": "t", "paragraphs": [{"context": "ann went to london .", "qas": qas}]}
    for name in ("train.json", "dev.json"):
        (squad / name).write_text(json.dumps({"version": "v2.0", "data": [article]}))
    options = ["--data", squad, *FAST, "--max-length", "24"]
    assert main(finetune("squad_v2", tiny_bert, tmp_path / "b", *options)) == 0
    predictions = json.loads((tmp_path / "b" / "predictions" / "predictions.json").read_text())
    assert set(predictions) == set("01234567")
    assert set(json.loads((tmp_path / "b" / "predictions" / "null_odds.json").read_text())) == set(
        predictions
    )
    assert {"f1", "exact_match", "best_f1", "has_answer_f1"} <= set(
        results(tmp_path / "b")["scores"]["dev"]
    )

    for name in ("train", "dev"):
        rows = [
            json.dumps({"text": "good film" if n % 2 else "bad plot", "score": n % 2 + 0.5})
            for n in range(16)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    files = ["--train", tmp_path / "train.jsonl", "--dev", tmp_path / "dev.jsonl"]
    options = ["--regression", *files, *FAST]
    assert main(finetune("text-classification", tiny_bert, tmp_path / "c", *options)) == 0
    assert results(tmp_path / "c")["scores"]["dev"]["pearson"]["mean"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "sst3", "--data", "x"], "--task sst3: unknown"),
        (["--task", "sst2"], "--data DIR_OR_HUB is required"),
        (["--task", "sst2", "--data", "no_such_folder"], "no such folder"),
        (["--task", "sst2", "--data", "GLUE", "--epochs", "0"], "--epochs 0.0: must be above 0"),
        (["--task", "sst2", "--data", "GLUE", "--mnli-first"], "--mnli-first"),
        (["--task", "cola", "--data", "GLUE"], "no training file"),
        (["--task", "sst2", "--data", "GLUE", "--model", "no_such_model"], "no_such_model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    options: list[str],
    message: str,
    tiny_bert: Path,
    tiny_sst2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [str(tiny_sst2) if option == "GLUE" else option for option in options]
    model = [] if "--model" in options else ["--model", str(tiny_bert)]
    assert main(["finetune", "--out", str(tmp_path / "out"), *model, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bertds: error: ") and message in error


def test_an_earlier_result_is_replaced_on_request(
    tiny_bert: Path,
    tiny_sst2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--data", tiny_sst2, *FAST, "--epochs", "1"]
    command = finetune("sst2", tiny_bert, tmp_path / "out", *options)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bertds.finetune.trials.write_json", killed)
        assert main(command) == 130
    # Its parts are there without a result: they are written again.
    assert (tmp_path / "out" / "predictions" / "dev.tsv").is_file()
    assert main(command) == 0
    assert not (tmp_path / "out" / ".unfinished").exists()
    before = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    assert main([*command, "--seeds", "3"]) == 2
    assert "contains an earlier result; replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == before
    assert main([*command, "--seeds", "3", "--overwrite"]) == 0
    assert [run["seed"] for run in results(tmp_path / "out")["runs"]] == [3]


def test_another_folder_is_not_overwritten(
    tiny_bert: Path, tiny_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(finetune("sst2", tiny_bert, tmp_path, "--data", tiny_sst2)) == 2
    assert "is not an earlier result (thesis.tex)" in capsys.readouterr().err


def test_metrics_by_hand() -> None:
    gold, predicted = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    scores = classification_scores(gold, predicted, ("accuracy", "f1", "matthews", "macro_f1"))
    # tp 2, fn 1, fp 1, tn 4: Matthews = (2*4 - 1*1) / sqrt(3*3*5*5)
    assert scores["accuracy"] == 6 / 8 and scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx(7 / 15)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    correlations = regression_scores([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])
    assert correlations["spearman"] == pytest.approx(1.0)
    assert correlations["pearson"] == pytest.approx(8 / (2 * (32 + 2 / 3)) ** 0.5)
    assert regression_scores([1.0, 2.0], [3.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def fake(task: str, split: str = "dev", **metrics: float) -> dict:
    scores = {name: {"mean": value, "spread": 0.0} for name, value in metrics.items()}
    return {"task": task, "scores": {split: scores}, "chosen_learning_rate": 2e-5, "published": ""}


def test_the_average_is_the_papers() -> None:
    everything = {
        "cola": fake("cola", matthews=0.5, accuracy=0.9),
        "sst2": fake("sst2", accuracy=0.9),
        "mrpc": fake("mrpc", f1=0.9, accuracy=0.8),
        "stsb": fake("stsb", pearson=0.8, spearman=0.9),
        "qqp": fake("qqp", f1=0.7, accuracy=0.9),
        "mnli": fake("mnli", "dev_matched", accuracy=0.8),
        "qnli": fake("qnli", accuracy=0.9),
        "rte": fake("rte", accuracy=0.6),
        "wnli": fake("wnli", accuracy=0.5),
    }
    assert average(everything) == pytest.approx(
        (0.5 + 0.9 + 0.85 + 0.85 + 0.8 + 0.8 + 0.9 + 0.6) / 8
    )
    assert "average without WNLI: 77.50" in table(everything)
    del everything["rte"]
    assert average(everything) is None and "no average, because results are missing: rte" in table(
        everything
    )


def test_a_dev_set_of_one_row_is_scored(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of labels in any script, and of numbers, whose metrics are others than those of the task."""
    rows = [f"film {n},{n % 2}" for n in range(8)]
    files = ["--train", tmp_path / "train.csv", "--dev", tmp_path / "dev.csv", *FAST[:2]]
    for kind, labels in (("words", ("好", "плохо")), ("numbers", ("0.5", "1"))):
        text = "\n".join(["text,label", *rows]).replace(",0", f",{labels[0]}")
        (tmp_path / "train.csv").write_text(text.replace(",1", f",{labels[1]}"), encoding="utf-8")
        (tmp_path / "dev.csv").write_text(f"text,label\nfilm,{labels[0]}", encoding="utf-8")
        regression = ["--regression"] if kind == "numbers" else []
        command = finetune("text-classification", tiny_bert, tmp_path / kind, *files, *regression)
        capsys.readouterr()
        assert main([*command, "--epochs", "1", "--no-model"]) == 0
        printed = capsys.readouterr().out
        metrics = ("pearson", "spearman") if regression else ("accuracy", "macro_f1")
        assert all(f"text-classification  {metric} " in printed for metric in metrics)
        assert set(results(tmp_path / kind)["scores"]["dev"]) == set(metrics)
    (predicted,) = (tmp_path / "words" / "predictions").iterdir()
    assert predicted.read_text(encoding="utf-8").split("\n")[1] in ("0\t好", "0\tплохо")


@pytest.mark.filterwarnings("error")
def test_sentences_without_entities_are_scored() -> None:
    gold, predicted = [["O", "O"], ["O"]], [["O", "O"], ["O"]]
    assert entity_scores(gold, predicted) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert entity_scores_by_type(gold, predicted) == {}
    assert entity_scores_by_type(gold, [["B-LOC", "O"], ["O"]]) == {"LOC": 0.0}
    for metrics in (("accuracy", "macro_f1"), ("matthews",), ("f1",)):
        assert set(classification_scores([1], [1], metrics)) == set(metrics)
