"""The ten-minute model: prepare, train for a fixed time, export, BLiMP, fine-tune, and a table.

Every stage keeps its result in the work folder and is not repeated:

```text
WORK/data   WORK/run   WORK/model   WORK/run/blimp.json   WORK/finetune/TASK/results.json
```
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertds.config.load import load_config
from bertds.config.recipe import Config
from bertds.errors import EXIT_OK, DataError, reason_of
from bertds.monitor.run_files import read_recipe
from bertds.pipeline.checks import check_pipeline
from bertds.pipeline.launch import train
from bertds.pipeline.stages import Phase, export_model, say
from bertds.system.json_fields import is_finite, parse_json

T = TypeVar("T")

TASKS = ("sst2", "mrpc", "cola", "rte")
PUBLISHED = (
    ("GPT-2 on 10 M words (BabyLM)", "65.1 to 67.3", ""),
    ("GPT-BERT on 10 M words (BabyLM)", "69 to 71", ""),
    ("LTG-BERT on 10 M words (BabyLM)", "60.6", "60.3"),
)
"""Model, BLiMP, mean of GLUE, as published for BabyLM's strict-small track."""
Command = Callable[[list[str]], int]
"""A command of ``bertds``: takes its arguments and returns its exit code."""
VALIDATION_FRACTION = 0.01
FINETUNING = ("--learning-rate", "1e-4", "--epochs", "5", "--no-test", "--no-model")


@dataclass(frozen=True, kw_only=True, slots=True)
class TenMinutes:
    """The inputs and options of the ten-minute model, with its stages."""

    work: Path
    recipe: str
    wiki: list[str]
    books: list[str]
    text: list[str]
    vocabulary: int
    """Size of the vocabulary that is trained on the text."""
    blimp: str
    """The folder of BLiMP's files; empty = BLiMP is not scored."""
    glue: str
    """The folder with GLUE's folders; empty = no fine-tuning."""
    limit: int
    """Number of BLiMP pairs from each file; 0 = all."""
    max_train_rows: int
    """Number of training rows of each GLUE task; 0 = all."""
    processes: int
    overrides: list[str]
    """KEY=VALUE of the recipe."""
    evaluate: Command
    """``bertds evaluate``."""
    finetune: Command
    """``bertds finetune``."""

    def check(self) -> None:
        """Check the inputs of every stage before any of them takes time.

        Raises:
            UserError: the first problem that a later stage would report.
        """
        check_pipeline(
            [self._phase()],
            self.overrides,
            processes=self.processes,
            vocab=None,
            vocab_size=self.vocabulary,
            model=self.work / "model",
        )
        self._pairs()
        self._tasks()

    def run(self) -> int:
        """Run all stages that are not complete. Returns 0, or 75 if training was stopped."""
        seconds: dict[str, float] = {}

        def timed(name: str, stage: Callable[[], T]) -> T:
            began = time.monotonic()
            result = stage()
            seconds[name] = time.monotonic() - began
            return result

        timed("prepare", self._prepare)
        phase = self._phase()
        run = phase.run
        code = timed("train", lambda: train(phase, self.processes, self.overrides))
        if code != EXIT_OK:
            return code
        timed("export", lambda: export_model(run, self.work / "model"))
        timed("BLiMP", lambda: self._score_blimp(run))
        timed("fine-tune", self._finetune)
        print(table(self.work, self.recipe))
        took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        print(f"this call: {took}")
        return EXIT_OK

    def _phase(self) -> Phase:
        run = self.work / "run"
        return Phase(run, self.recipe, [f"run.dir={run}", f"data.path={self.work / 'data'}"])

    def _pairs(self) -> int:
        """Return the number of BLiMP pairs to score.

        Raises:
            DataError: the folder has none.
        """
        from bertds.pretrained.blimp import read_pairs

        return len(read_pairs(self.blimp, self.limit)) if self.blimp else 0

    def _tasks(self) -> list[str]:
        """Return the tasks whose folders exist, after reading them.

        Raises:
            DataError: there is none, or the files of one are missing or malformed.
        """
        from bertds.finetune.load import load_task
        from bertds.finetune.task_data import DataOptions
        from bertds.finetune.tasks import TASKS as ALL

        if not self.glue:
            return []
        folders = {task: Path(self.glue) / ALL[task].folder for task in TASKS}
        found = [task for task, folder in folders.items() if folder.is_dir()]
        if not found:
            names = ", ".join(folder.name for folder in folders.values())
            raise DataError(f"--glue {self.glue}: contains none of the folders {names}")
        for task in found:
            rows = DataOptions(
                data=str(folders[task]), max_train_rows=self.max_train_rows, no_test=True
            )
            load_task(ALL[task], rows)
        return found

    def _prepare(self) -> None:
        from data_prep.prepare import prepare
        from data_prep.request import PrepRequest

        say("prepare the corpus")
        prepare(
            PrepRequest(
                out=self.work / "data",
                wiki=self.wiki,
                books=self.books,
                text=self.text,
                train_vocab=self.vocabulary,
                validation_fraction=VALIDATION_FRACTION,
            )
        )

    def _score_blimp(self, run: Path) -> None:
        from bertds.checkpoint.find import locate
        from bertds.pretrained.blimp import FILE

        if not self.blimp:
            return
        say("BLiMP")
        done = _read(run / FILE)
        # The scores count only for this checkpoint, limit and set of pairs.
        wanted = (locate(run).manifest["step"], self.limit or None, self._pairs())
        if (done.get("step"), done.get("limit"), done.get("pairs")) == wanted:
            print(f"{run / 'blimp.json'}: already done")
            return
        limit = ["--limit", str(self.limit)] if self.limit else []
        self.evaluate([str(run), "--blimp", self.blimp, *limit])

    def _finetune(self) -> None:
        import torch

        from bertds.finetune.trials import RESULTS

        rows = ["--max-train-rows", str(self.max_train_rows)] if self.max_train_rows else []
        precision = ["--bf16"] if torch.cuda.is_available() else []
        stamp = (self.work / "run" / "DONE").stat().st_mtime
        for task in self._tasks():
            out = self.work / "finetune" / task
            say(f"fine-tune {task}")
            result = out / RESULTS
            # A result counts only for this run's model, this folder and this number of rows.
            data = _read(result).get("data")
            asked = {"data": self.glue, "max_train_rows": self.max_train_rows}
            is_same = isinstance(data, dict) and {key: data.get(key) for key in asked} == asked
            if is_same and result.stat().st_mtime >= stamp:
                print(f"{result}: already done")
                continue
            self.finetune(
                ["--task", task, "--model", str(self.work / "model"), "--data", self.glue]
                + ["--out", str(out), "--overwrite", *FINETUNING, *rows, *precision]
            )


def table(work: Path, recipe: str) -> str:
    """Return our row next to the published ones; ``-`` marks what was not measured."""
    from bertds.finetune.trials import RESULTS
    from bertds.pretrained.blimp import FILE, PARADIGMS

    blimp = _read(work / "run" / FILE)
    overall, limit = _number(blimp.get("overall")), _number(blimp.get("limit"))
    score = "-" if overall is None else f"{overall:.1f}"
    notes = [f"first {limit:.0f} pairs of each file"] if limit else []
    paradigms = blimp.get("paradigms")
    if isinstance(paradigms, dict) and len(paradigms) != PARADIGMS:
        notes.append(f"{len(paradigms)} of {PARADIGMS} paradigms")
    tasks, means = [], []
    for task in TASKS:
        value = _dev_score(_read(work / "finetune" / task / RESULTS))
        tasks.append("-" if value is None else f"{100 * value:.1f}")
        means += [] if value is None else [100 * value]
    mean = f"{sum(means) / len(means):.1f}" if len(means) == len(TASKS) else "-"
    own = work / "run" / "config.yaml"  # with --set, the training differs from the recipe
    config: Config = load_config(read_recipe(own, []) if own.is_file() else recipe)
    hours = config.schedule.clock_hours
    name = f"ours: {recipe}" + (f", {60 * hours:.0f} min of training" if hours else "")
    head = f"{'model':<50} {'BLiMP':<14}" + "".join(f"{task:>7}" for task in TASKS)
    lines = [f"{head} {'mean':>6}"]
    lines.append(f"{name:<50} {score:<14}" + "".join(f"{v:>7}" for v in tasks) + f" {mean:>6}")
    for published, theirs, glue in PUBLISHED:
        lines.append(f"{published:<50} {theirs:<14}" + " " * 7 * len(TASKS) + f" {glue:>6}")
    if notes:
        lines.append(f"Our BLiMP score: {', '.join(notes)}.")
    lines.append(
        "Dev scores in percent: accuracy; F1 for MRPC; Matthews correlation for CoLA. Published "
        "means are over all GLUE tasks, as reported by BabyLM."
    )
    return "\n".join(lines)


def _dev_score(result: dict[str, Any]) -> float | None:
    """Return a task's main metric on its dev set."""
    from bertds.finetune.tasks import TASKS as ALL

    scores, task = result.get("scores"), result.get("task")
    if not isinstance(scores, dict) or not isinstance(task, str) or task not in ALL:
        return None
    for split, metrics in scores.items():
        metric = metrics.get(ALL[task].main_metric) if isinstance(metrics, dict) else None
        if split.startswith("dev") and isinstance(metric, dict):
            return _number(metric.get("mean"))
    return None


def _number(value: object) -> float | None:
    """Return a number of a result; None for anything else, which counts as not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        return None
    return float(value)


def _read(file: Path) -> dict[str, Any]:
    """Return what an earlier stage has left; empty where there is nothing."""
    if not file.is_file():
        return {}
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({reason_of(error)}); remove it and start again"
        ) from None
    return value if isinstance(value, dict) else {}
