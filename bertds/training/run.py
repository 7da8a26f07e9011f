"""Builds everything that one run needs, in order, and holds it together while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bertds.checkpoint.save import Checkpoints
from bertds.checkpoint.train_state import TrainState
from bertds.config.load import load_config, split_assignments, to_dict
from bertds.config.ramps import BatchRamp, MaskRate, mean_mask_rate
from bertds.config.recipe import Config
from bertds.cost_model.flops import Meter
from bertds.cost_model.hardware import device_peak
from bertds.data.loader import BatchLoader, DataPosition, open_source
from bertds.distributed.heartbeat import Heartbeat
from bertds.distributed.step_sync import Agreement
from bertds.distributed.stop_requests import Place, StopWatch, find_place, seconds_left_of_job
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import DeepSpeedSettings, load_deepspeed_json
from bertds.engine.process_group import end_processes, meet_processes
from bertds.errors import BertdsError, ConfigError
from bertds.model.build import build_model
from bertds.monitor.metrics import Metrics
from bertds.monitor.trackers import start_trackers
from bertds.optim.lr_schedule import LearningRate
from bertds.system.heap_trim import Heap
from bertds.system.logs import log, start_logging
from bertds.training.auto_micro_batch import choose_micro_batch
from bertds.training.bad_step_guard import Guard
from bertds.training.run_folder import RunFolder, environment
from bertds.training.sample_log import SampleLog
from bertds.training.speedups import speed_up
from bertds.training.starting_point import (
    check_alike,
    continue_run,
    start_weights,
    warn_of_other_data,
)
from bertds.training.validation import Validator

clock = time.perf_counter
"""Seconds, for the training time that the clock schedule follows."""


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
        self.guard: Guard
        self.loader: BatchLoader | None = None
        self.heartbeat: Heartbeat | None = None
        self.validator: Validator | None = None
        self.sample_log: SampleLog | None = None
        self.heap: Heap | None = None
        self._hours_clock = clock()

    # -- building ----------------------------------------------------------------------------

    def build(self) -> None:
        """Open the data, build model and engine, and find where to start."""
        config, place = self.config, self.place
        for notice in self.settings.notices:
            log.info("%s", notice)
        self._watch_peers()
        if not self.settings.finds_micro_batch:
            self.settings.batch_plan(place.world_size)  # what is wrong with it is said first
        self.source = open_source(config.data, config.run.seed, split="train")
        tokenizer = self.source.tokenizer
        held_out = self._open_validation()
        torch.manual_seed(config.run.seed)  # the same initial weights on every rank
        model = build_model(config.model, tokenizer.vocab_size)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        start = start_weights(config, model, tokenizer, self.folder.checkpoints)
        self.settings = choose_micro_batch(model, config, self.settings, place)
        self.plan = self.settings.batch_plan(place.world_size)
        self.ramp = BatchRamp.of(config.schedule, self.plan)
        speed_up(model, config, self.settings)
        self.engine = Engine.create(model, self.settings, self.plan, seed=config.run.seed)
        if held_out is not None:
            self.validator = Validator(config, held_out, self.engine)
        self.guard = Guard(config.guard, self.engine)
        if self.engine.device.type == "cpu":
            self.heap = Heap()
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
        check_alike(self.engine, start, self.source)
        warn_of_other_data(start, self.source)
        self.state = continue_run(config, self.engine, start)
        device = self.engine.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.folder.record(self.settings.values, tokenizer.files, name)
        self.learning_rate = LearningRate(self.settings.optimizer.lr, config.schedule)
        if place.is_main:
            self.trackers = start_trackers(config, facts, self.folder.path)
        self.metrics = Metrics(
            self.folder.path,
            config.log.every_steps,
            config.model.next_sentence,
            self.engine,
            self.trackers,
            Meter(
                config.model,
                tokenizer.vocab_size,
                mean_mask_rate(config.data, config.schedule.total_steps),
                config.data.max_predictions_per_sequence,
                place.world_size,
                device_peak(self.engine.device.type, self.settings.precision),
            ),
        )
        self.metrics.start(self.state)
        self.metrics.restore_window(self.state.window)
        job_seconds = seconds_left_of_job(config.run.stop_margin_minutes)
        watch = StopWatch(self.folder.path, config.run.max_hours, job_seconds).listen()
        self.agreement = Agreement(self.engine, watch)
        self.agreement.hours = self.state.hours
        self.agreement.main_hours = self.state.main_hours
        self.agreement.tokens = self.state.tokens
        self.loader = BatchLoader(
            self.source,
            config.data,
            self.plan,
            place.rank,
            start=DataPosition(self.state.epoch, self.state.offset),
            seed=config.run.seed,
            pin=self.engine.device.type == "cuda",
            ramp=self.ramp,
            mask_rate=MaskRate.of(config.data, config.schedule.total_steps),
            first_step=self.state.step,
        )
        self._batches = iter(self.loader)
        if config.run.log_samples:
            if place.is_main:  # alone, before the others write
                self.sample_log = SampleLog(self.folder.path, 0, self.state.step)
            self.engine.gather_objects(None)
            self.sample_log = self.sample_log or SampleLog(
                self.folder.path, place.rank, self.state.step
            )
        self._announce()
        self._hours_clock = clock()

    def _watch_peers(self) -> None:
        guard, place = self.config.guard, self.place
        if place.world_size == 1:
            return
        store = meet_processes(guard.meeting_timeout_seconds)
        if guard.peer_timeout_seconds > 0:
            self.heartbeat = Heartbeat(
                place.rank,
                place.world_size,
                guard.peer_timeout_seconds,
                store,
                on_leave=self.folder.lock.release,
            ).start()

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
        if self.validator is None and self.place.is_main:
            log.warning("no held-out data: set validation.path, or prepare a validation split")

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
        self.engine.use_batch(batch.plan)
        if self.sample_log is not None:
            self.sample_log.write(self.state.step + 1, batch.samples)
        return batch

    def measure(self, output: Any, micro_batch: Any) -> None:
        """Take note of one micro batch's losses; waits for nothing."""
        masked, rows = micro_batch.masked, micro_batch.rows
        self.metrics.add(output, masked, rows)
        self.guard.watch(output, masked, rows)

    def update(self, batch: Any) -> None:
        """Update the weights, unless the gradient is bad, and count the step.

        Raises:
            BertdsError: too many steps in a row made no update.
            InUseError: another process has taken the run folder over.
        """
        state = self.state
        limit = self.guard.norm_limit(state)
        self.agreement.ask()
        with self.metrics.optimizer.timed():
            applied = self.engine.step(limit)
        self.folder.lock.check(at_most_every=1.0)  # before anything is written
        state.step += 1
        state.samples += batch.plan.global_batch_size
        state.epoch, state.offset = batch.next.epoch, batch.next.offset
        now = clock()
        self.agreement.main_hours += (now - self._hours_clock) / 3600.0
        self._hours_clock = now
        self.agreement.read()
        state.tokens, state.hours = self.agreement.tokens, self.agreement.hours
        self.guard.judge(state, batch.samples, applied, limit)
        if self.heap is not None:
            self.heap.look()
        if self.heartbeat is not None:
            self.heartbeat.progress()

    def validate_if_due(self) -> None:
        """Validate when the step is a multiple of ``validation.every_steps``."""
        every = self.config.validation.every_steps
        if every and self.state.step % every == 0:
            self._validate()

    def validate_at_end(self) -> None:
        """Validate after the last step, unless that was just done."""
        self._validate()

    def _validate(self) -> None:
        state = self.state
        if self.validator is None or state.validated_step == state.step:
            return
        state.validated_step = state.step
        with self.metrics.pause():
            scores = self.validator.score()
        if state.best_mlm_loss is None or scores["mlm_loss"] < state.best_mlm_loss:
            state.best_mlm_loss, state.best_step = scores["mlm_loss"], state.step
        self.metrics.write({"step": state.step, "split": "validation", **scores})

    def save_if_due(self, force: bool) -> None:
        """Save a checkpoint when its step has come, when it is the best so far, or when told to."""
        state, cadence = self.state, self.config.checkpoint
        due = cadence.every_steps and state.step % cadence.every_steps == 0
        best = cadence.keep_best and state.best_step == state.step
        if not (force or due or best):
            return
        with self.metrics.pause():
            state.main_hours = self.agreement.main_hours
            state.window = self.metrics.window()
            self.folder.lock.check()
            self.checkpoints.save(state, wait=force)

    # -- ending ------------------------------------------------------------------------------

    def close(self, finished: bool) -> None:
        """Say how it ended; write ``DONE`` at the true end."""
        StopWatch.ignore_signals()
        state = self.state
        if finished:
            self.folder.lock.check()
            self.folder.finish({"step": state.step, "samples": state.samples})
        else:
            log.info(
                "stopped at step %d (%s); everything is saved: run the same command again",
                state.step,
                self.agreement.reason_to_stop(),
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close everything; an error that a lost peer caused becomes one that names it."""
        lost = ""
        if error is not None and self.heartbeat is not None and not isinstance(error, BertdsError):
            lost = self.heartbeat.explain(error)
        if self.loader is not None:
            self.loader.close()
        for tracker in self.trackers:
            tracker.close()
        self._leave(lost or " ".join(str(error or "").split()), orderly=error is None)
        self.folder.close()
        if lost:
            raise BertdsError(f"{lost}; run the same command again to continue") from error

    def _leave(self, failure: str, *, orderly: bool) -> None:
        if hasattr(self, "checkpoints"):
            self.checkpoints.abandon()
        if orderly:
            self.engine.gather_objects(None)  # nobody stops beating while another still watches
        if self.heartbeat is not None:
            self.heartbeat.stop("" if orderly else failure or "an error")
        if hasattr(self, "engine"):
            self.engine.close(orderly=orderly)
        elif self.heartbeat is not None:
            end_processes(wait=False)


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
    places = [Path(named), Path(__file__).resolve().parents[2] / named]
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
    except BaseException as error:
        run.__exit__(type(error), error, error.__traceback__)
        raise
    return run
