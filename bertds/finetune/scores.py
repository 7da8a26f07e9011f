"""The metrics of the papers. All are fractions from 0 to 1 (correlations: from -1 to 1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

# Factor of printed metrics: GLUE and the papers use percent.
PERCENT = 100.0


def classification_scores(
    gold: Sequence[int], predicted: Sequence[int], metrics: Sequence[str]
) -> dict[str, float]:
    """Score labels by ``accuracy``, ``f1`` (of label 1), ``macro_f1`` or ``matthews``."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    known: dict[str, Any] = {
        "accuracy": lambda: accuracy_score(gold, predicted),
        "f1": lambda: f1_score(gold, predicted, pos_label=1, zero_division=0.0),
        "macro_f1": lambda: f1_score(gold, predicted, average="macro", zero_division=0.0),
        "matthews": lambda: matthews_corrcoef(gold, predicted),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a few rows with a single label, Matthews is 0
        return {name: float(known[name]()) for name in metrics}


def regression_scores(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return the ``pearson`` and ``spearman`` correlations; 0 if one side is constant."""
    from scipy.stats import pearsonr, spearmanr

    if len(gold) < 2 or np.ptp(gold) == 0.0 or np.ptp(predicted) == 0.0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predicted, gold)[0]),
        "spearman": float(spearmanr(predicted, gold)[0]),
    }


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Return micro-averaged ``f1``, ``precision`` and ``recall`` of whole entities (seqeval)."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without predicted entities F1 is 0, as reported
        return {
            "f1": float(f1_score(gold, predicted)),
            "precision": float(precision_score(gold, predicted)),
            "recall": float(recall_score(gold, predicted)),
        }


def entity_scores_by_type(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Return the entity F1 of each type; empty without entities."""
    from seqeval.metrics import classification_report

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the averages over no type, which are not used
        report = classification_report(gold, predicted, output_dict=True, zero_division=0)
    return {
        kind: float(values["f1-score"])
        for kind, values in report.items()
        if not kind.endswith(" avg")
    }


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for a single value)."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
