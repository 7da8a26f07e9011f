"""Builds everything that one run needs, in order, and holds it together while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bertds.agreement import Agreement
from bertds.checkpoint import Checkpoints
from bertds.config import Config
from bertds.config_io import load_config, split_assignments, to_dict
from bertds.data.loader import (
    BatchLoader,
    DataPosition,
    open_source,
    validation_batches,
)
from bertds.engine.config_check import DeepSpeedSettings, load_deepspeed_json
from bertds.engine.deepspeed_engine import Engine
from bertds.errors import BertdsError, ConfigError
from bertds.initial import continue_run, start_weights
from bertds.logs import log, start_logging
from bertds.metrics import Metrics
from bertds.model.bert import BertForPreTraining
from bertds.run_folder import RunFolder, environment
from bertds.runtime import Place, StopWatch, find_place
from bertds.schedule import LearningRate
from bertds.state import TrainState
from bertds.tracking import start_trackers
from bertds.validation import score


class Run:
    """The collaborators of one run. Built by :func:`build_run`; used by ``bertds.train.train``."""

    def __init__(self, config: Config, settings: DeepSpeedSettings, place: Place) -> None:
        self.config = config
        self.settings = settings
        self.place = place
        self.folder = RunFolder(config, place.is_main)
        self.state = TrainState()
        self.trackers: list[Any] = []
        self.engine: Engine
        self.metrics: Metrics
        self.checkpoints: Checkpoints
        self.agreement: Agreement
        self.loader: BatchLoader | None = None
        self.validation_source: Any = None
        self._hours_clock = time.perf_counter()
        self._sample_log: Any = None
        self._validated_step: int | None = None

    # -- building ----------------------------------------------------------------------------

    def build(self) -> None:
        """Open the data, build model and engine, and find where to start."""
        config, place = self.config, self.place
        for notice in self.settings.notices:
            log.info("%s", notice)
        self.plan = self.settings.batch_plan(place.world_size)
        self.source = open_source(config.data, config.run.seed, split="train")
        tokenizer = self.source.tokenizer
        self.validation_source = self._open_validation()
        torch.manual_seed(config.run.seed)  # the same initial weights on every rank
        model = BertForPreTraining(config.model, tokenizer.vocab_size)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        start = start_weights(config, model, tokenizer, self.folder.checkpoints, place)
        self.engine = Engine.create(model, self.settings, self.plan, seed=config.run.seed)
        facts = {
            "model": {**to_dict(config.model), "vocab_size": tokenizer.vocab_size},
            "tokenizer": tokenizer.to_json(),
            "recipe": to_dict(config),
            "deepspeed": self.settings.values,
            "data": self.source.describe(),
            "world_size": place.world_size,
            "versions": environment(),
        }
        self.checkpoints = Checkpoints(
            self.folder.path, config.checkpoint, self.engine, shapes, facts
        )
        self.state = continue_run(config, self.engine, start, facts)
        self.folder.record(self.settings.values, tokenizer.files)
        self.learning_rate = LearningRate(self.settings.optimizer.lr, config.schedule)
        if place.is_main:
            self.trackers = start_trackers(config, facts, self.folder.path)
        self.metrics = Metrics(
            self.folder.path,
            config.log.every_steps,
            config.model.next_sentence,
            self.engine,
            self.trackers,
        )
        self.metrics.start(self.state)
        self.metrics.restore_window(self.state.window)
        watch = StopWatch(self.folder.path, config.run.max_hours).listen()
        self.agreement = Agreement(self.engine, self.plan, watch)
        self.agreement.hours = self.agreement.main_hours = self.state.hours
        self.agreement.tokens = self.state.tokens
        self.loader = BatchLoader(
            self.source,
            config.data,
            self.plan,
            place.rank,
            start=DataPosition(self.state.epoch, self.state.offset),
            seed=config.run.seed,
        )
        self._batches = iter(self.loader)
        self._open_sample_log()
        self._announce()
        self._hours_clock = time.perf_counter()

    def _open_validation(self) -> Any:
        config = self.config
        if config.validation.path:
            from dataclasses import replace

            data = replace(config.data, path=config.validation.path)
            return open_source(data, config.run.seed, split="validation")
        return self.source.sibling("validation")

    def _announce(self) -> None:
        config, plan = self.config, self.plan
        log.info(
            "%s: %d steps of %d samples = micro batch %d x %d accumulation x %d processes; "
            "sequence length %d; %s",
            f"continuing at step {self.state.step}" if self.state.step else "starting",
            config.schedule.total_steps,
            plan.global_batch_size,
            plan.micro_batch_size,
            plan.gradient_accumulation_steps,
            plan.world_size,
            config.data.sequence_length,
            self.engine.describe(),
        )
        if self.validation_source is None and self.place.is_main:
            log.warning("no held-out data: set validation.path, or prepare a validation split")

    def _open_sample_log(self) -> None:
        if not self.config.run.log_samples:
            return
        path = self.folder.path / f"samples_rank_{self.place.rank:05d}.jsonl"
        lines: Iterable[str] = path.read_text().splitlines() if path.is_file() else ()
        kept = [line for line in lines if json.loads(line)["step"] <= self.state.step]
        path.write_text("".join(line + "\n" for line in kept))
        self._sample_log = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by release()

    # -- training ----------------------------------------------------------------------------

    @property
    def stall_seconds(self) -> float:
        """Seconds that training has waited for the loader."""
        return self.loader.stall_seconds if self.loader else 0.0

    def is_finished(self) -> bool:
        """Whether the last step is done, or the clock budget is spent."""
        schedule = self.config.schedule
        if schedule.clock_hours is not None and self.state.hours >= schedule.clock_hours:
            return True
        return self.state.step >= schedule.total_steps

    def next_batch(self) -> Any:
        """Return this rank's part of the next optimizer step."""
        batch = next(self._batches)
        if self._sample_log is not None:
            record = {"step": self.state.step + 1, "samples": batch.samples.tolist()}
            self._sample_log.write(json.dumps(record) + "\n")
            self._sample_log.flush()
        return batch

    def advance(self, batch: Any, applied: bool) -> None:
        """Count one step.

        Raises:
            BertdsError: too many steps in a row made no update.
        """
        state = self.state
        state.step += 1
        state.samples += self.plan.global_batch_size
        state.epoch, state.offset = batch.next.epoch, batch.next.offset
        state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
        state.skipped_steps += not applied
        now = time.perf_counter()
        self.agreement.main_hours += (now - self._hours_clock) / 3600.0
        self._hours_clock = now
        self.agreement.read()
        state.tokens, state.hours = self.agreement.tokens, self.agreement.hours
        limit = self.config.guard.max_bad_steps
        if not applied:
            numbers = ", ".join(f"{e}:{n}" for e, n in batch.samples[:8].tolist())
            log.warning(
                "step %d made no update (non-finite gradient); samples epoch:number %s ... on "
                "rank %d", state.step, numbers, self.place.rank,
            )  # fmt: skip
            if state.skipped_in_a_row >= limit and not self.engine.searching_loss_scale():
                raise BertdsError(
                    f"{state.skipped_in_a_row} steps in a row made no update, the last is step "
                    f"{state.step} with samples {numbers} ... on rank {self.place.rank}; the last "
                    "checkpoint is untouched. Lower the learning rate, or look at those samples"
                )

    def validate_if_due(self) -> None:
        """Validate when the step is a multiple of ``validation.every_steps``."""
        every = self.config.validation.every_steps
        if every and self.state.step % every == 0:
            self._validate()

    def validate_at_end(self) -> None:
        """Validate after the last step, unless that was just done."""
        self._validate()

    def _validate(self) -> None:
        state, config = self.state, self.config
        if self.validation_source is None or self._validated_step == state.step:
            return
        self._validated_step = state.step
        place = self.place
        micro_batch = config.validation.micro_batch_size or self.plan.micro_batch_size
        rows = self.validation_source.with_seed(config.run.seed).samples_in_epoch(0)
        rows = min(rows, config.validation.max_samples or rows)
        most_rows = -(-rows // place.world_size)

        def batches(rank: int, world_size: int) -> Iterable[Any]:
            return validation_batches(
                self.validation_source,
                config.data,
                micro_batch,
                rank,
                world_size,
                seed=config.run.seed,
                max_samples=config.validation.max_samples,
            )

        with self.metrics.pause():
            scores = score(
                batches(place.rank, place.world_size),
                lambda batch: self.engine.eval_forward(batch.to(self.engine.device)),
                self.engine.global_sums,
                config.model.next_sentence,
                passes=-(-most_rows // micro_batch),
                filler=lambda: batches(0, 1),
            )
        if state.best_mlm_loss is None or scores["mlm_loss"] < state.best_mlm_loss:
            state.best_mlm_loss, state.best_step = scores["mlm_loss"], state.step
        self.metrics.write({"step": state.step, "split": "validation", **scores})

    def save_if_due(self, force: bool) -> None:
        """Save a checkpoint when its step has come, or when told to."""
        every = self.config.checkpoint.every_steps
        if not force and not (every and self.state.step % every == 0):
            return
        with self.metrics.pause():
            self.agreement.read(everything=True)
            self.state.tokens, self.state.hours = self.agreement.tokens, self.agreement.hours
            self.state.window = self.metrics.window()
            self.checkpoints.save(self.state)

    # -- ending ------------------------------------------------------------------------------

    def close(self, finished: bool) -> None:
        """Say how it ended; write ``DONE`` at the true end."""
        StopWatch.ignore_signals()
        state = self.state
        if finished:
            self.folder.finish({"step": state.step, "samples": state.samples})
        else:
            log.info(
                "stopped at step %d (%s); everything is saved: run the same command again",
                state.step,
                self.agreement.reason_to_stop(),
            )

    def release(self) -> None:
        """Close the loader, trackers, engine and the folder's lock."""
        if self.loader is not None:
            self.loader.close()
        for tracker in self.trackers:
            tracker.close()
        if self._sample_log is not None:
            self._sample_log.close()
        if hasattr(self, "engine"):
            self.engine.close()
        self.folder.close()


def find_deepspeed_json(config: Config, recipe: str | None, given: str | None) -> Path:
    """Return the DeepSpeed JSON to use: the one given, else the one that the recipe names.

    A recipe's relative path is looked for from the working directory, then beside the recipe's
    own clone (``ds_configs/`` stands next to ``bertds/``).
    """
    if given:
        return Path(given)
    named = config.run.deepspeed_config
    if not named:
        raise ConfigError(
            "no DeepSpeed JSON: give --deepspeed_config F.json, or run.deepspeed_config in the "
            "recipe"
        )
    places = [Path(named), Path(__file__).resolve().parents[1] / named]
    if recipe:
        places.append(Path(recipe).resolve().parent / named)
    return next((place for place in places if place.is_file()), places[0])


def read_settings(
    recipe: str | None, deepspeed_json: str | None, assignments: list[str], place: Place
) -> tuple[Config, DeepSpeedSettings]:
    """Read the recipe, the DeepSpeed JSON and the ``--set`` assignments to either."""
    values = split_assignments(assignments)
    prefix = "deepspeed."
    for_json = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    config = load_config(recipe, {k: v for k, v in values.items() if not k.startswith(prefix)})
    path = find_deepspeed_json(config, recipe, deepspeed_json)
    return config, load_deepspeed_json(path, for_json)


def build_run(
    recipe: str | None,
    deepspeed_json: str | None,
    assignments: list[str],
    *,
    log_samples: bool = False,
) -> Run | None:
    """Read all settings and build the run.

    Returns:
        The run, or None if it was already done.

    Raises:
        UserError: a setting, the data, the run folder or a checkpoint is wrong.
    """
    place = find_place()
    start_logging(place.is_main)
    if log_samples:
        assignments = [*assignments, "run.log_samples=true"]
    config, settings = read_settings(recipe, deepspeed_json, assignments, place)
    run = Run(config, settings, place)
    if run.folder.done:
        log.info("%s: already done; choose another run.dir to train again", run.folder.path)
        return None
    run.folder.open()
    try:
        run.build()
    except BaseException:
        run.folder.close()
        raise
    return run
