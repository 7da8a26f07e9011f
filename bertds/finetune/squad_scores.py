"""SQuAD's exact match and F1, by the rules of the official evaluation scripts.

Answers are lower-cased, punctuation and the articles a, an, the are removed, and white space is
collapsed. The score of a question is the best over its answers. In version 2.0 an unanswerable
question has the single answer "" and scores 1 if "" is predicted.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from bertds.finetune.records import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the normalized form of a text, which is compared."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(gold: str, predicted: str) -> float:
    """Return 1.0 if both texts are equal after normalization, else 0.0."""
    return float(normalize_answer(gold) == normalize_answer(predicted))


def token_f1(gold: str, predicted: str, *, v2: bool = False) -> float:
    """Return the harmonic mean of precision and recall over the words of two texts."""
    gold_words = normalize_answer(gold).split()
    words = normalize_answer(predicted).split()
    if v2 and (not gold_words or not words):
        return float(gold_words == words)  # "no answer" is right only if there is no answer
    shared = sum((Counter(gold_words) & Counter(words)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def gold_texts(question: Question, *, v2: bool) -> list[str]:
    """Return the gold answers that count in the official script."""
    texts = [text for text, _ in question.answers]
    if not v2:
        return texts
    # As the official script: an answer that normalizes to nothing ("the") does not count.
    return [text for text in texts if normalize_answer(text)] or [""]


def question_scores(question: Question, predicted: str, *, v2: bool) -> tuple[float, float]:
    """Return (exact match, F1) of one question."""
    texts = gold_texts(question, v2=v2)
    return (
        max(exact_match(text, predicted) for text in texts),
        max(token_f1(text, predicted, v2=v2) for text in texts),
    )


def squad_scores(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    *,
    v2: bool = False,
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Score predictions; a question without a prediction scores 0, as in the official script.

    Args:
        questions: the questions with their answers.
        predictions: id -> text.
        v2: whether to apply the rules of version 2.0.
        null_odds: id -> score of "no answer" minus that of the best answer. With it the result
            contains the best scores over all thresholds, like the official script's
            ``--na-prob-file``.

    Returns:
        ``exact_match``, ``f1``, ``total``, ``missing``; for version 2.0 also ``has_answer_*`` and
        ``no_answer_*``, and with odds ``best_*`` and ``best_*_threshold``.
    """
    exact, f1 = {}, {}
    for question in questions:
        if question.id in predictions:
            scores = question_scores(question, predictions[question.id], v2=v2)
        else:
            scores = (0.0, 0.0)
        exact[question.id], f1[question.id] = scores
    result = {
        "exact_match": _mean(list(exact.values())),
        "f1": _mean(list(f1.values())),
        "total": float(len(questions)),
        "missing": float(sum(q.id not in predictions for q in questions)),
    }
    # Version 2.0 reports questions with and without an answer separately.
    if not v2:
        return result
    answered = {q.id for q in questions if q.answers}
    for name, ids in (("has_answer", answered), ("no_answer", set(exact) - answered)):
        if ids:
            result[f"{name}_exact_match"] = _mean([exact[i] for i in ids])
            result[f"{name}_f1"] = _mean([f1[i] for i in ids])
            result[f"{name}_total"] = float(len(ids))
    if null_odds is not None:
        for name, scores_of in (("exact_match", exact), ("f1", f1)):
            best, threshold = best_threshold(answered, predictions, scores_of, null_odds)
            result[f"best_{name}"], result[f"best_{name}_threshold"] = best, threshold
    return result


def best_threshold(
    answered: set[str],
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """Return the best mean score over all thresholds of "no answer", and that threshold.

    ``predictions`` must be the best non-empty answers. A question whose odds are above the
    threshold counts as answered by "".
    """
    ids = [i for i in scores if i in null_odds]
    current = float(sum(i not in answered for i in scores))  # every question answered by ""
    best, threshold = current, 0.0
    # The threshold rises past one question at a time, whose own answer then replaces "".
    for i in sorted(ids, key=lambda i: null_odds[i]):
        if i in answered:
            change = scores[i]
        else:
            change = -1.0 if predictions.get(i) else 0.0
        current += change
        if current > best:
            best, threshold = current, null_odds[i]
    return best / max(1, len(scores)), threshold


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
