"""Runs the GLUE tasks one after another and prints the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertds.errors import DataError
from bertds.finetune.scores import PERCENT
from bertds.finetune.tasks import GLUE, TASKS
from bertds.system.atomic_files import write_json

MNLI_FIRST = ("rte", "mrpc", "stsb")
"""Small tasks that the papers (RoBERTa, MosaicBERT) start from the MNLI model."""
# MNLI comes first, so that these tasks can start from its model.
ORDER = ("mnli", *(name for name in GLUE if name != "mnli"))


def present_tasks(data: str) -> list[str]:
    """Return the GLUE tasks whose folders exist (all tasks for a dataset of the Hub).

    Raises:
        DataError: there is no such folder.
    """
    root = Path(data)
    if not root.is_dir():
        return list(ORDER)
    found = [name for name in ORDER if (root / TASKS[name].folder).is_dir()]
    if not found:
        folders = ", ".join(TASKS[name].folder for name in GLUE)
        raise DataError(f"{root}: contains none of the GLUE folders ({folders})")
    return found


def run_suite(
    names: list[str],
    out: Path,
    run_one: Callable[[str, Path], dict[str, Any]],
    *,
    is_main: bool = True,
) -> dict[str, Any]:
    """Run tasks into ``out/NAME`` and write ``out/glue.json``.

    Returns:
        task -> its results.
    """
    results = {}
    for name in names:
        results[name] = run_one(name, out / name)
        if not is_main:
            continue
        # A submission to the leaderboard is one folder with the test predictions of all tasks.
        submission = out / "submission"
        submission.mkdir(parents=True, exist_ok=True)
        for path in sorted((out / name / "predictions").glob("*.tsv")):
            if not path.name.startswith("dev"):
                (submission / path.name).write_bytes(path.read_bytes())
    if is_main:
        write_json(out / "glue.json", {"average": average(results), "tasks": results})
    return results


def glue_score(result: dict[str, Any]) -> float:
    """Return a task's part of the average: the mean of its metrics over its dev sets."""
    values = [
        metrics[name]["mean"]
        for split, metrics in result["scores"].items()
        if split.startswith(("dev", "validation"))
        for name in TASKS[result["task"]].metrics
        # The leaderboard scores CoLA by Matthews alone.
        if name in metrics and not (result["task"] == "cola" and name != "matthews")
    ]
    return sum(values) / len(values)


def average(results: dict[str, Any]) -> float | None:
    """Return the average as on the leaderboard, without WNLI; None if a task is missing."""
    counted = [name for name in GLUE if name != "wnli"]
    if any(name not in results for name in counted):
        return None
    return sum(glue_score(results[name]) for name in counted) / len(counted)


def table(results: dict[str, Any]) -> str:
    """Return the table: one line per metric, the average, and the missing tasks."""
    lines = [f"{'task':<20} {'metric':<12} {'dev':>7} {'+-':>6}  rate     published base / large"]
    for name, result in results.items():
        for split, metrics in result["scores"].items():
            if not split.startswith(("dev", "validation", "test")) or not metrics:
                continue
            usual = TASKS.get(name, TASKS["ner"]).metrics
            # With --regression, text-classification has the metrics of a regression.
            for metric in [one for one in usual if one in metrics] or metrics:
                value = metrics[metric]
                label = name if split == "dev" else f"{name} ({split})"
                lines.append(
                    f"{label:<20} {metric:<12} {value['mean'] * PERCENT:7.2f} "
                    f"{value['spread'] * PERCENT:6.2f}  {result['chosen_learning_rate']:<7g}  "
                    f"{result['published']}"
                )
    if any(name in GLUE for name in results) and len(results) > 1:
        mean = average(results)
        if mean is not None:
            lines.append(f"average without WNLI: {mean * PERCENT:.2f}")
        else:
            missing = [name for name in GLUE if name not in results and name != "wnli"]
            lines.append(f"no average, because results are missing: {', '.join(missing)}")
    return "\n".join(lines)
