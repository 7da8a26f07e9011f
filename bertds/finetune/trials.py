"""Fine-tunes on one task: tries every learning rate and seed, keeps the best, writes predictions.

```text
OUT/
  results.json           settings, every run's scores, mean and spread, what was left out
  model/                 the best run's model: a Hugging Face folder
  predictions/           dev and test predictions in the official format of the task
```
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertds import __version__
from bertds.data.vocabulary_file import VOCAB, vocabulary_file
from bertds.display.words import count
from bertds.distributed.rank_info import find_rank_info
from bertds.errors import ConfigError
from bertds.finetune.load import load_task
from bertds.finetune.loop import Stepper, TorchStepper, TrainReport, TrainSettings, predict, train
from bertds.finetune.scores import PERCENT, mean_and_spread
from bertds.finetune.task_data import DataOptions, Split, TaskData
from bertds.finetune.task_kinds import (
    CLASSES,
    Encoded,
    encode,
    head_arguments,
    score,
    write_predictions,
)
from bertds.finetune.tasks import Task
from bertds.pretrained.transformers_api import (
    as_hugging_face_folder,
    load_transformers,
    tokenizer_of,
)
from bertds.system.atomic_files import write_json
from bertds.system.folder_lock import FolderLock
from bertds.system.json_fields import parse_json
from bertds.system.logs import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULTS = "results.json"
UNFINISHED = ".unfinished"
"""Marks a folder that is being written: after a kill its parts are replaced, not refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The settings of all trials on one task."""

    model: str
    out: Path
    settings: TrainSettings
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    max_length: int
    deepspeed: str = ""
    """A DeepSpeed JSON, which then decides batch size, precision and clipping."""
    null_threshold: float = 0.0
    """SQuAD 2.0: by how much the score of "no answer" must be higher."""
    save_model: bool = True
    overwrite: bool = False
    """Whether an earlier result in ``out`` is replaced."""


@dataclass(slots=True)
class Trial:
    """The result of one learning rate and seed."""

    learning_rate: float
    seed: int
    scores: dict[str, dict[str, float]]
    """Split -> metric -> value."""
    report: TrainReport


def finetune(task: Task, data_options: DataOptions, options: RunOptions) -> dict[str, Any]:
    """Fine-tune and return the content of ``results.json``.

    Raises:
        ConfigError: ``options.out`` contains something else.
        DataError: the data is missing or malformed.
        CheckpointError: the model does not exist.
    """
    check_out(options.out, overwrite=options.overwrite)
    if data_options.regression:
        task = replace(
            task, kind="regression", metrics=("pearson", "spearman"), main_metric="spearman"
        )
    data = load_task(task, data_options)
    options.out.mkdir(parents=True, exist_ok=True)
    is_main = not options.deepspeed or find_rank_info().is_main
    lock = FolderLock(options.out, "fine-tuning") if is_main else nullcontext()
    with lock, as_hugging_face_folder(options.model) as folder:
        return _Runner(task, data, options, folder).run(data_options)


def earlier_results(data_options: DataOptions, options: RunOptions) -> dict[str, Any] | None:
    """Return the results of the same run in ``options.out``, or None if there are none.

    Raises:
        ConfigError: they are of a different model, different data or different settings.
    """
    file = options.out / RESULTS
    if not file.is_file():
        return None
    try:
        results = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: not JSON ({error}); remove it") from None
    if not isinstance(results, dict):
        raise ConfigError(f"{file}: not a JSON object; remove it")
    for key, value in _asked(data_options, options).items():
        found = results.get(key)
        if key == "data" and isinstance(found, dict):  # an older result lacks newer options
            found = {**asdict(DataOptions(data="")), **found}
        if found != value:
            if isinstance(found, dict) and isinstance(value, dict):
                key, found, value = next(
                    (f"{key}.{k}", found.get(k), v) for k, v in value.items() if found.get(k) != v
                )
            raise ConfigError(
                f"{file}: was written with {key}={found!r}, but now {key}={value!r}; choose "
                "another --out, or remove the file"
            )
    return results


def _asked(data_options: DataOptions, options: RunOptions) -> dict[str, Any]:
    """Return the settings that decide the scores, as stored in ``results.json``."""
    settings = asdict(options.settings)
    for name in ("learning_rate", "seed"):
        settings.pop(name)
    return {
        "model": options.model,
        "data": asdict(data_options),
        "max_length": options.max_length,
        "settings": settings,
        "deepspeed": options.deepspeed,
        "learning_rates": list(options.learning_rates),
        "seeds": list(options.seeds),
    }


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty; ``overwrite`` allows an earlier result.

    Raises:
        ConfigError: it is not empty.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; choose a folder")
    ours = (out / RESULTS).is_file() or (out / UNFINISHED).is_file()
    if out.is_dir() and any(out.iterdir()) and not ours:
        others = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if others:
            raise ConfigError(
                f"--out {out}: exists and is not an earlier result ({others[0]}); choose another "
                "folder"
            )
    if (out / RESULTS).is_file() and not overwrite:
        raise ConfigError(
            f"--out {out}: contains an earlier result; replace it with --overwrite, or choose "
            "another folder"
        )


class _Runner:
    """One task with its encoded data; runs the trials."""

    def __init__(self, task: Task, data: TaskData, options: RunOptions, folder: Path) -> None:
        self.task, self.data, self.options, self.folder = task, data, options, folder
        self.tokenizer = tokenizer_of(folder)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        max_length = self._max_length()
        self.labels = data.labels
        self.train = encode(task, self.tokenizer, data.train, self.labels, max_length, train=True)
        self.scored = [self._encode(split, max_length) for split in data.dev]
        self.unscored = [self._encode(split, max_length) for split in data.test]
        self.stepper: Stepper
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        self.best_predictions: dict[str, Any] = {}

    def _max_length(self) -> int:
        config = parse_json((self.folder / "config.json").read_text(encoding="utf-8"))
        positions = int(config.get("max_position_embeddings", self.options.max_length))
        if self.options.max_length > positions:
            log.info("rows are truncated to %d tokens, the maximum of the model", positions)
        return min(self.options.max_length, positions)

    def _encode(self, split: Split, max_length: int) -> Encoded:
        return encode(
            self.task,
            self.tokenizer,
            split,
            self.labels,
            max_length,
            null_threshold=self.options.null_threshold,
        )

    def _new_model(self) -> PreTrainedModel:
        """Return the given model with a new head."""
        head = head_arguments(self.task, self.labels)
        return load_transformers(self.folder, CLASSES[self.task.kind], dtype=torch.float32, **head)

    def run(self, data_options: DataOptions) -> dict[str, Any]:
        """Run all trials and write the folder."""
        options = self.options
        trials: list[Trial] = []
        for learning_rate in options.learning_rates:
            for seed in options.seeds:
                trials.append(self.trial(learning_rate, seed))
        chosen = choose_learning_rate(trials, self.scored[0].split.name, self.task.main_metric)
        results = self._results(trials, chosen, data_options)
        if self.stepper.rank == 0:
            self._write(results)
        return results

    def trial(self, learning_rate: float, seed: int) -> Trial:
        """Train one model from the start and score it."""
        options, task = self.options, self.task
        settings = replace(options.settings, learning_rate=learning_rate, seed=seed)
        torch.manual_seed(seed)  # decides the initial weights of the new head
        model = self._new_model()
        if options.deepspeed:
            from bertds.finetune.deepspeed_stepper import DeepSpeedStepper

            self.stepper = DeepSpeedStepper(model, settings, self.pad_id, options.deepspeed)
            settings = self.stepper.settings
        else:
            self.stepper = TorchStepper(model, settings, self.pad_id)
        # Train, then score each split.
        report = train(self.stepper, self.train.examples, settings)
        scores, predictions = {}, {}
        for encoded in [*self.scored, *self.unscored]:
            logits = predict(self.stepper.logits, encoded.examples, self.pad_id)
            predicted = encoded.decode(logits)
            predictions[encoded.split.name] = predicted
            scores[encoded.split.name] = score(task, encoded.split, predicted)
        main = scores[self.scored[0].split.name].get(task.main_metric, 0.0)
        log.info(
            "%s, learning rate %g, seed %d: %s (%s, %.0f s)",
            task.name,
            learning_rate,
            seed,
            in_words(scores, task.metrics),
            count(report.steps, "step"),
            report.seconds,
        )
        # Keep the weights of the best trial only: one copy on the CPU instead of one per trial.
        if self.best is None or main > self.best[0]:
            self.best = (main, self.stepper.full_weights())
            self.best_predictions = predictions
        return Trial(learning_rate, seed, scores, report)

    def _results(
        self, trials: list[Trial], chosen: float, data_options: DataOptions
    ) -> dict[str, Any]:
        options, task = self.options, self.task
        # Mean and spread over the seeds, for the chosen learning rate.
        summary: dict[str, Any] = {}
        for split in trials[0].scores:
            for metric in trials[0].scores[split]:
                values = [t.scores[split][metric] for t in trials if t.learning_rate == chosen]
                mean, spread = mean_and_spread(values)
                summary.setdefault(split, {})[metric] = {
                    "mean": mean,
                    "spread": spread,
                    "best": max(values),
                }
        return {
            "bertds": __version__,
            "task": task.name,
            **_asked(data_options, options),
            "sources": self.data.sources,
            "rows": {
                "train": len(self.data.train.rows),
                **{split.name: len(split.rows) for split in [*self.data.dev, *self.data.test]},
            },
            "left_out": self.data.left_out,
            "labels": list(self.labels),
            "main_metric": task.main_metric,
            "chosen_learning_rate": chosen,
            "scores": summary,
            "published": task.published,
            "runs": [
                {
                    "learning_rate": trial.learning_rate,
                    "seed": trial.seed,
                    "scores": trial.scores,
                    "steps": trial.report.steps,
                    "seconds": round(trial.report.seconds, 1),
                    "loss": trial.report.last_loss,
                }
                for trial in trials
            ],
        }

    def _write(self, results: dict[str, Any]) -> None:
        out, task = self.options.out, self.task
        assert self.best is not None
        # From here on the folder is incomplete until results.json is written, which comes last.
        (out / UNFINISHED).touch()
        (out / RESULTS).unlink(missing_ok=True)  # an earlier result's, whose parts now go
        shutil.rmtree(out / "predictions", ignore_errors=True)
        for encoded in [*self.scored, *self.unscored]:
            split = encoded.split
            write_predictions(
                task, split, self.best_predictions[split.name], self.labels, out / "predictions"
            )
        if self.options.save_model:
            shutil.rmtree(out / "model", ignore_errors=True)
            model = self._new_model()
            model.load_state_dict(self.best[1])
            model.save_pretrained(out / "model")
            self.tokenizer.save_pretrained(out / "model")
            if (file := vocabulary_file(self.folder)).name == VOCAB:
                # transformers 5 writes tokenizer.json only.
                shutil.copyfile(file, out / "model" / VOCAB)
        write_json(out / RESULTS, results)
        (out / UNFINISHED).unlink()


def choose_learning_rate(trials: Sequence[Trial], split: str, metric: str) -> float:
    """Return the learning rate with the best mean dev score (the first one of equals)."""
    means: dict[float, float] = {}
    for rate in dict.fromkeys(trial.learning_rate for trial in trials):
        values = [t.scores[split].get(metric, 0.0) for t in trials if t.learning_rate == rate]
        means[rate] = mean_and_spread(values)[0]
    return max(means, key=lambda rate: means[rate])


def in_words(scores: dict[str, dict[str, float]], metrics: Sequence[str]) -> str:
    """Return scores in percent, as the papers print them."""
    return "; ".join(
        f"{split} " + ", ".join(f"{m} {values[m] * PERCENT:.2f}" for m in metrics if m in values)
        for split, values in scores.items()
        if values
    )
