"""Reads SQuAD JSON, versions 1.1 and 2.0, and checks the offset of every answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bertds.errors import DataError
from bertds.finetune.records import BadRows, Question, read_text
from bertds.system.json_fields import parse_text_json


def read_squad(path: Path, *, split: str) -> tuple[list[Question], BadRows]:
    """Read one SQuAD file.

    An answer whose ``answer_start`` does not point to its text would teach the model a wrong span.
    Such questions are dropped from the training data and counted by id. In other splits they are
    counted but kept, because EM and F1 do not use offsets.

    Args:
        path: plain or gzip JSON.
        split: train, dev or test (answers are optional in a test file).

    Returns:
        The questions, and those that were dropped (train) or only counted.

    Raises:
        DataError: the layout is not that of SQuAD (the place is named), an id occurs twice, a
            question that is marked as answerable has no answers, or too many offsets are wrong.
    """
    try:
        content = parse_text_json(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    return questions_of(content, path, split=split)


def questions_of(content: object, path: Path, *, split: str) -> tuple[list[Question], BadRows]:
    """Return the questions of a SQuAD file that was already parsed; see :func:`read_squad`."""
    found = (_question(*where, split) for where in _walk(path, content))
    return check_questions(found, path, split=split)


def check_questions(
    found: Iterable[Question], where: Path | str, *, split: str
) -> tuple[list[Question], BadRows]:
    """Check ids and offsets; see :func:`read_squad`.

    Args:
        found: the questions, from a file or a dataset.
        where: its name, for messages.
        split: train, dev or test.
    """
    bad = BadRows(where, tolerated=True, what="question", kept=split != "train")
    questions: list[Question] = []
    seen: set[str] = set()
    for question in found:
        context = question.context
        if question.id in seen:
            raise DataError(f"{where}: the id {question.id!r} occurs twice")
        seen.add(question.id)
        # An offset is right if the context has the answer's text at that position.
        wrong = [
            (text, start)
            for text, start in question.answers
            if context[start : start + len(text)] != text or start < 0 or not text
        ]
        if wrong:
            text, start = wrong[0]
            there = context[max(start, 0) : max(start, 0) + len(text)]
            bad.add(
                question.id, f"answer {text!r} is not at position {start}; found {there!r} there"
            )
        if not wrong or split != "train":
            questions.append(question)
    bad.finish(len(questions))
    return questions, bad


def refuse_unanswerable(questions: Iterable[Question], where: Path | str) -> None:
    """Refuse a question without an answer: version 1.1 has none, and its scoring would fail.

    Raises:
        DataError: names the question.
    """
    for question in questions:
        if not question.answers:
            raise DataError(
                f"{where}: the question {question.id!r} has no answer, as in SQuAD 2.0; use --task "
                "squad_v2"
            )


def _walk(path: Path, content: object) -> Iterator[tuple[str, str, object]]:
    """Yield (place, context, qa); refuse any other layout."""
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(f"{path}: no list 'data'; this is not the SQuAD format")
    for a, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise DataError(f"{path}: data[{a}] has no list 'paragraphs'")
        for p, paragraph in enumerate(paragraphs):
            place = f"{path}: data[{a}].paragraphs[{p}]"
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            if not isinstance(context, str) or not isinstance(paragraph.get("qas"), list):
                raise DataError(f"{place}: 'context' or 'qas' is missing")
            for q, qa in enumerate(paragraph["qas"]):
                yield f"{place}.qas[{q}]", context, qa


def _question(place: str, context: str, qa: object, split: str) -> Question:
    if not isinstance(qa, dict) or not isinstance(qa.get("question"), str) or "id" not in qa:
        raise DataError(f"{place}: 'id' or 'question' is missing")
    answers = []
    given = qa.get("answers") or []
    if not isinstance(given, list):
        raise DataError(f"{place}: 'answers' is not a list")
    for number, answer in enumerate(given):
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or type(start) is not int:
            raise DataError(f"{place}.answers[{number}]: 'text' or 'answer_start' is missing")
        answers.append((text, start))
    impossible = bool(qa.get("is_impossible", False))
    if impossible and answers:
        raise DataError(f"{place}: is_impossible is true, but it has answers")
    if not answers and not impossible and split != "test":
        raise DataError(f"{place}: no answers, but is_impossible is false")
    # Leading spaces of some questions cost tokens and have no meaning.
    return Question(str(qa["id"]), qa["question"].strip(), context, answers)
