from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bertds.errors import DataError
from bertds.finetune.load import load_task
from bertds.finetune.readers.squad import read_squad
from bertds.finetune.records import Question
from bertds.finetune.squad_features import encode_questions, read_answers
from bertds.finetune.squad_scores import best_threshold, normalize_answer, squad_scores, token_f1
from bertds.finetune.task_data import DataOptions
from bertds.finetune.tasks import TASKS


def squad(*questions: dict, context: str = "The cat sat on a mat in 1984.") -> dict:
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def qa(number: int, text: str, start: int) -> dict:
    return {
        "id": str(number),
        "question": " Who? ",
        "answers": [{"text": text, "answer_start": start}],
    }


def save(path: Path, value: object) -> Path:
    path.write_text("\ufeff" + json.dumps(value))
    return path


def test_published_files(shared_data: Path) -> None:
    for name, count, impossible in (
        ("dev-v1.1.json.gz", 10570, 0),
        ("train-v1.1-sample.json.gz", 3997, 0),
        ("squadshifts-new_wiki_v1.0.json.gz", 7938, 0),
        ("dev-v2.0-half.json.gz", 6078, 3168),
    ):
        questions, bad = read_squad(shared_data / "squad" / name, split="train")
        assert (len(questions), sum(not q.answers for q in questions)) == (count, impossible)
        assert bad.rows == []


def test_a_wrong_offset_is_counted_by_id_and_never_trained_on(tmp_path: Path) -> None:
    questions = [qa(n, "cat", 4) for n in range(200)] + [qa(200, "cat", 5)]
    path = save(tmp_path / "train.json", squad(*questions))
    train, bad = read_squad(path, split="train")
    assert len(train) == 200 and bad.rows == [
        ("200", "answer 'cat' is not at position 5; found 'at ' there")
    ]
    dev, bad = read_squad(path, split="dev")  # EM and F1 do not use offsets
    assert len(dev) == 201 and len(bad.rows) == 1
    with pytest.raises(DataError, match=r"2 of 2 rows are malformed, the first at question 1"):
        read_squad(save(tmp_path / "x.json", squad(qa(1, "dog", 4), qa(2, "cat", -3))), split="dev")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"version": "1"}, "no list 'data'"),
        ({"data": [{"title": "x"}]}, r"data\[0\] has no list 'paragraphs'"),
        (
            {"data": [{"paragraphs": [{"qas": []}]}]},
            r"paragraphs\[0\]: 'context' or 'qas' is missing",
        ),
        (squad({"id": "1", "answers": []}), r"qas\[0\]: 'id' or 'question' is missing"),
        (
            squad({"id": "1", "question": "x", "answers": []}),
            "no answers, but is_impossible is false",
        ),
        (squad(qa(1, "cat", 4), qa(1, "cat", 4)), "the id '1' occurs twice"),
        (
            squad(qa(1, "cat", 4) | {"is_impossible": True}),
            "is_impossible is true, but it has answers",
        ),
        (
            squad({"id": "1", "question": "x", "answers": [{"text": "cat"}]}),
            r"answers\[0\]: 'text' or 'answer_start' is missing",
        ),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_squad(save(tmp_path / "x.json", value), split="dev")


def test_unanswerable_questions_need_version_2(tmp_path: Path) -> None:
    answer, none = (
        qa(1, "cat", 4),
        {"id": "2", "question": "?", "answers": [], "is_impossible": True},
    )
    path = str(save(tmp_path / "dev.json", squad(answer, none)))
    options = DataOptions(data="", train_file=path, dev_file=path)
    with pytest.raises(DataError, match=r"'2' has no answer.* use --task squad_v2"):
        load_task(TASKS["squad"], options)
    assert len(load_task(TASKS["squad_v2"], options).dev[0].rows) == 2


def question(number: str, *answers: str) -> Question:
    return Question(number, "?", "", [(text, 0) for text in answers])


def test_normalisation() -> None:
    assert normalize_answer("The  U.S.A.'s  an Apple, a day") == "usas apple day"
    assert normalize_answer("theatre of the absurd") == "theatre of absurd"
    assert normalize_answer("a") == "" and normalize_answer("–") == "–"  # only ASCII punctuation


def test_version_1_by_hand() -> None:
    questions = [
        question("1", "The cat", "Tom"),
        question("2", "10 May 1984"),
        question("3", "x"),
        question("4", "the"),
    ]
    scores = squad_scores(questions, {"1": "cat!", "2": "May 10", "4": "a"})
    # 1: exact. 2: no exact match; 2 shared of 2 and 3 words: F1 = 0.8. 3: missing. 4: both
    # normalise to nothing: an exact match, and by version 1.1's formula an F1 of 0.
    assert scores["exact_match"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx((1 + 0.8 + 0 + 0) / 4)
    assert scores["missing"] == 1


def test_repeated_words_count_once_each() -> None:
    assert token_f1("b b c", "b c d") == pytest.approx(2 / 3)
    assert token_f1("b", "c") == 0.0


def test_version_2_by_hand() -> None:
    questions = [
        question("a1", "cat"),
        question("a2", "the", "red dog"),
        question("n1"),
        question("n2"),
    ]
    predictions = {"a1": "", "a2": "dog", "n1": "", "n2": "bird"}
    scores = squad_scores(questions, predictions, v2=True)
    assert scores["exact_match"] == pytest.approx(1 / 4)  # n1
    assert scores["f1"] == pytest.approx((0 + 2 / 3 + 1 + 0) / 4)
    assert scores["has_answer_total"] == scores["no_answer_total"] == 2
    assert scores["has_answer_f1"] == pytest.approx(1 / 3) and scores["no_answer_f1"] == 0.5


def test_best_threshold_by_hand() -> None:
    # Sorted by odds: a1 (-2, right), n1 (-1, wrongly answered), a2 (0, right), n2 (3).
    odds = {"a1": -2.0, "n1": -1.0, "a2": 0.0, "n2": 3.0}
    predictions = dict.fromkeys(odds, "x")
    scores = {"a1": 1.0, "a2": 1.0, "n1": 0.0, "n2": 0.0}
    # "" for all: 2 right; up to a1: 3; up to n1: 2; up to a2: 3; up to n2: 2.
    assert best_threshold({"a1", "a2"}, predictions, scores, odds) == (0.75, -2.0)


def test_windows_find_every_answer_again(shared_data: Path) -> None:
    """Perfect logits on the windows give back the answers: features and decoding are inverse."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "model" / "all-MiniLM-L6-v2")
    path = shared_data / "squad" / "train-v1.1-sample.json.gz"
    questions = read_squad(path, split="train")[0][:150]
    examples, windows = encode_questions(tokenizer, questions, 96, train=True)
    assert len(examples) > 2 * len(questions) and max(map(len, examples)) == 96
    starts, ends = [], []
    for example in examples:
        start, end = np.zeros(len(example)), np.zeros(len(example))
        # A window without the answer says so at [CLS], with less weight than a found answer.
        start[example.targets["start_positions"]] += 5.0 if example.targets["end_positions"] else 1
        end[example.targets["end_positions"]] += 5.0
        starts.append(start)
        ends.append(end)
    answers = read_answers(questions, windows, starts, ends, v2=False)
    scores = squad_scores(questions, answers.texts)
    assert scores["exact_match"] > 0.98  # tokens cannot show "1990" in "1990s"
    assert scores["f1"] > 0.985


def test_the_space_around_an_answer_is_in_no_token(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "model" / "all-MiniLM-L6-v2")
    for text, start in (("cat", 4), (" cat ", 3), (" ", 3)):
        questions = [Question("1", "who sat?", "the cat sat", [(text, start)])]
        (example,), _ = encode_questions(tokenizer, questions, 32, train=True)
        place = 6 if text.strip() else 0
        assert example.targets == {"start_positions": place, "end_positions": place}


def test_no_answer_wins_where_cls_scores_higher(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "model" / "all-MiniLM-L6-v2")
    questions = [Question("1", "who sat?", "the cat sat", [("cat", 4)])]
    examples, windows = encode_questions(tokenizer, questions, 32, train=True)
    assert examples[0].targets == {"start_positions": 6, "end_positions": 6}
    logits = np.zeros(len(examples[0]))
    logits[6], logits[0] = 2.0, 3.0
    answers = read_answers(questions, windows, [logits], [logits], v2=True)
    assert answers.texts == {"1": ""} and answers.best_spans == {"1": "cat"}
    assert answers.null_odds["1"] == pytest.approx(2.0)
    raised = read_answers(questions, windows, [logits], [logits], v2=True, null_threshold=2.5)
    assert raised.texts == {"1": "cat"}
