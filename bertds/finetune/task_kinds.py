"""The differences between kinds of tasks: model head, features, decoding, scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertds.finetune.features import Example, encode_sentences, encode_texts
from bertds.finetune.readers.conll import format_conll
from bertds.finetune.records import Question
from bertds.finetune.scores import (
    classification_scores,
    entity_scores,
    entity_scores_by_type,
    regression_scores,
)
from bertds.finetune.squad_features import Answers, encode_questions, read_answers
from bertds.finetune.squad_scores import squad_scores
from bertds.finetune.task_data import Split
from bertds.finetune.tasks import Task
from bertds.system.atomic_files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Logits = list[tuple[torch.Tensor, ...]]

CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "ner": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
}


@dataclass(slots=True)
class Encoded:
    """One split as examples, with the function that decodes its logits."""

    split: Split
    examples: list[Example]
    decode: Callable[[Logits], Any]


def encode(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    labels: Sequence[str],
    max_length: int,
    *,
    train: bool = False,
    null_threshold: float = 0.0,
) -> Encoded:
    """Turn a split into examples; see :class:`Encoded`.

    Args:
        task: the task, whose kind decides the form of the examples.
        tokenizer: the tokenizer of the model (transformers).
        split: the rows.
        labels: names of the labels, in the order of the model's outputs.
        max_length: maximum number of tokens of an example.
        train: whether the examples need targets (SQuAD: start and end positions).
        null_threshold: SQuAD 2.0: how much "no answer" must exceed the best span.
    """
    rows: Any = split.rows
    if task.kind == "ner":
        examples, places = encode_sentences(tokenizer, rows, labels, max_length)

        def decode_tags(logits: Logits) -> list[list[str]]:
            # O stays where a word has no position; see encode_sentences.
            tags = [["O"] * len(sentence.words) for sentence in rows]
            for place, (values,) in zip(places, logits, strict=True):
                best = values.argmax(-1)
                for word, position in place.places:
                    tags[place.sentence][word] = labels[int(best[position])]
            return tags

        return Encoded(split, examples, decode_tags)
    if task.kind == "qa":
        examples, windows = encode_questions(tokenizer, rows, max_length, train=train)

        def decode_answers(logits: Logits) -> Answers:
            return read_answers(
                rows,
                windows,
                [pair[0].numpy() for pair in logits],
                [pair[1].numpy() for pair in logits],
                v2=task.name == "squad_v2",
                null_threshold=null_threshold,
            )

        return Encoded(split, examples, decode_answers)
    regression = task.kind == "regression"

    def decode_rows(logits: Logits) -> np.ndarray:
        values = torch.stack([value[0] for value in logits]).numpy()
        return values[:, 0] if regression else values.argmax(-1)

    examples = encode_texts(tokenizer, rows, max_length, regression=regression)
    return Encoded(split, examples, decode_rows)


def head_arguments(task: Task, labels: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that shape the new head."""
    if task.kind == "qa":
        return {}
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }


def score(task: Task, split: Split, predicted: Any) -> dict[str, float]:
    """Score a split's predictions with the task's metrics; {} if the split has no labels."""
    rows: Any = split.rows
    if task.kind == "qa":
        if not any(question.answers for question in rows):
            return {}
        # The scores at the given threshold, and for version 2.0 those at the best one.
        return squad_scores(
            rows, predicted.texts, v2=task.name == "squad_v2", null_odds=None
        ) | _best_thresholds(task, rows, predicted)
    if task.kind == "ner":
        gold = [sentence.tags for sentence in rows]
        if any(tags is None for tags in gold):
            return {}
        by_type = entity_scores_by_type(gold, predicted)
        return entity_scores(gold, predicted) | {f"f1_{k}": v for k, v in by_type.items()}
    gold = [row.label for row in rows]
    if any(label is None for label in gold):
        return {}
    if task.kind == "regression":
        return regression_scores(gold, predicted.tolist())
    return classification_scores(gold, predicted.tolist(), task.metrics)


def _best_thresholds(task: Task, rows: list[Question], predicted: Answers) -> dict[str, float]:
    if task.name != "squad_v2":
        return {}
    scores = squad_scores(rows, predicted.best_spans, v2=True, null_odds=predicted.null_odds)
    return {key: value for key, value in scores.items() if key.startswith("best_")}


def write_predictions(
    task: Task, split: Split, predicted: Any, labels: Sequence[str], folder: Path
) -> list[Path]:
    """Write a split's predictions in the task's official format. Returns the files.

    GLUE: a TSV with ``index`` and ``prediction``. CoNLL: the columns word, gold tag, predicted tag.
    SQuAD: a JSON object id -> answer (and for version 2.0 also ``null_odds.json``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: Any = split.rows
    if task.kind == "qa":
        name = split.submission or "predictions.json"
        files = [folder / name]
        write_text(files[0], json.dumps(predicted.texts, ensure_ascii=False, indent=1) + "\n")
        if task.name == "squad_v2":
            files.append(folder / "null_odds.json")
            write_text(files[1], json.dumps(predicted.null_odds, indent=1) + "\n")
        return files
    if task.kind == "ner":
        path = folder / f"{split.name}.conll"
        write_text(path, format_conll(rows, predicted))
        return [path]
    path = folder / (split.submission or f"{split.name}.tsv")
    if task.kind == "regression":
        texts = [f"{value:.3f}" for value in predicted.tolist()]
        if task.name == "stsb":  # the scale is 0 to 5
            texts = [f"{min(5.0, max(0.0, value)):.3f}" for value in predicted.tolist()]
    else:
        texts = [labels[number] for number in predicted.tolist()]
    lines = ["index\tprediction", *(f"{row.id}\t{text}" for row, text in zip(rows, texts))]
    write_text(path, "\n".join(lines) + "\n")
    return [path]
