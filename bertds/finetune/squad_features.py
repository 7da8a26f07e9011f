"""Cuts paragraphs into windows, and reads the answers back out of the windows' logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertds.errors import ConfigError
from bertds.finetune.features import Example
from bertds.finetune.records import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW_OVERLAP = 128
MAX_QUERY_LENGTH = 64
MAX_ANSWER_LENGTH = 30
BEST_SIZE = 20


@dataclass(slots=True)
class Window:
    """Where one example is in its question's paragraph."""

    question: int
    offsets: list[tuple[int, int] | None]
    """Characters of each paragraph token; None for question and special tokens."""


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_length: int,
    *,
    train: bool,
) -> tuple[list[Example], list[Window]]:
    """Encode questions with every window of their contexts.

    Args:
        tokenizer: a fast one, because character offsets are needed.
        questions: with answers if ``train``.
        max_length: tokens per window; adjacent windows share ``WINDOW_OVERLAP`` tokens.
        train: add ``start_positions`` and ``end_positions`` of the first answer; a window without
            the whole answer points to [CLS].

    Raises:
        ConfigError: ``max_length`` leaves no room for a context.
    """
    # The longest question decides how much room each window has; 3 special tokens are added.
    asked = [_shortened(tokenizer, question.question) for question in questions]
    longest = max(len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"])
    room = max_length - longest - 3
    if room < 2:
        raise ConfigError(
            f"--max-length {max_length}: leaves no room for the context next to a question of "
            f"{longest} tokens; raise it"
        )
    encoded = tokenizer(
        asked,
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_length,
        stride=min(WINDOW_OVERLAP, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    # Only tokens of the context have offsets, so that no answer can be in the question.
    examples, windows = [], []
    for row, owner in enumerate(map(int, encoded["overflow_to_sample_mapping"])):
        parts = encoded.sequence_ids(row)
        offsets = [
            tuple(span) if part == 1 else None
            for span, part in zip(encoded["offset_mapping"][row], parts)
        ]
        targets = {}
        if train:
            start, end = _target(questions[owner], offsets)
            targets = {"start_positions": start, "end_positions": end}
        examples.append(Example(encoded["input_ids"][row], encoded["token_type_ids"][row], targets))
        windows.append(Window(owner, offsets))  # type: ignore[arg-type]
    return examples, windows


def _shortened(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return (
        question
        if len(offsets) <= MAX_QUERY_LENGTH
        else question[: offsets[MAX_QUERY_LENGTH - 1][1]]
    )


def _target(question: Question, offsets: Sequence[Any]) -> tuple[int, int]:
    if not question.answers:
        return 0, 0
    text, begin = question.answers[0]
    begin += len(text) - len(text.lstrip())  # no token contains the space around an answer
    end = begin + len(text.strip())
    inside = [i for i, span in enumerate(offsets) if span and span[1] > begin and span[0] < end]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < end:
        return 0, 0  # the answer is not, or not entirely, in this window
    return inside[0], inside[-1]


@dataclass(slots=True)
class Answers:
    """Predictions in the form of the official files."""

    texts: dict[str, str]
    """id -> answer; "" if there is none."""
    null_odds: dict[str, float]
    """id -> score of "no answer" minus that of the best answer (version 2.0)."""
    best_spans: dict[str, str]
    """id -> the best answer that is not empty."""


def read_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    v2: bool,
    null_threshold: float = 0.0,
) -> Answers:
    """Choose each question's answer: the span with the highest sum of logits over all windows.

    Args:
        questions: in order.
        windows: from :func:`encode_questions`.
        start_logits: float [tokens] per window.
        end_logits: the same.
        v2: allow "no answer", if its score exceeds that of the best span by more than
            ``null_threshold``.
        null_threshold: see ``v2``.
    """
    # Over all windows of a question: the best span, and the lowest score of "no answer".
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for window, start, end in zip(windows, start_logits, end_logits, strict=True):
        owner = window.question
        nothing = float(start[0] + end[0])
        null[owner] = min(null.get(owner, nothing), nothing)
        found = _best_span(window.offsets, start, end)
        if found is not None and (owner not in best or found[0] > best[owner][0]):
            score, begin, stop = found
            best[owner] = (score, questions[owner].context[begin:stop])
    answers = Answers({}, {}, {})
    for number, question in enumerate(questions):
        score, text = best.get(number, (-np.inf, ""))
        odds = null[number] - score if np.isfinite(score) else 1e9
        answers.best_spans[question.id] = text
        answers.null_odds[question.id] = float(odds)
        answers.texts[question.id] = "" if v2 and odds > null_threshold else text
    return answers


def _best_span(
    offsets: Sequence[tuple[int, int] | None], start: np.ndarray, end: np.ndarray
) -> tuple[float, int, int] | None:
    """Return (score, first character, character after the last) of a window's best span."""
    usable = np.array([span is not None for span in offsets])
    masked_start = np.where(usable, start[: len(offsets)], -np.inf)
    masked_end = np.where(usable, end[: len(offsets)], -np.inf)
    best = None
    for i in np.argsort(-masked_start, kind="stable")[:BEST_SIZE]:
        if not usable[i]:
            break
        stop = min(len(offsets), i + MAX_ANSWER_LENGTH)
        j = int(i + np.argmax(masked_end[i:stop]))
        score = float(masked_start[i] + masked_end[j])
        first, last = offsets[i], offsets[j]
        if first is not None and last is not None and (best is None or score > best[0]):
            best = (score, first[0], last[1])
    return best
