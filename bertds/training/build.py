"""Builds a run: reads the settings, then creates each collaborator after those that it needs.

    settings -> run folder -> peers -> data -> model and start -> engine -> state
             -> checkpoints, metrics, loader -> Run

Everything that is already open is closed again if a later part cannot be created.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch

from bertds.checkpoint.copies import restore
from bertds.checkpoint.save import Checkpoints
from bertds.checkpoint.train_state import TrainState
from bertds.config.batch_plan import BatchPlan
from bertds.config.load import to_dict
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import Config
from bertds.cost_model.hardware import device_peak
from bertds.data.loader import BatchLoader, DataPosition, open_source
from bertds.data.sources.base import Source
from bertds.display.words import count
from bertds.distributed.heartbeat import Heartbeat
from bertds.distributed.liveness import KeyValueStore
from bertds.distributed.rank_info import RankInfo, find_rank_info
from bertds.distributed.step_sync import Agreement
from bertds.distributed.stop_requests import StopRequests, seconds_left_of_job
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.engine.process_group import main_first, meet_processes
from bertds.errors import DataError
from bertds.model.build import PreTrainingModel, build_model, check_model_size
from bertds.monitor.metrics import Listener, Metrics
from bertds.monitor.mfu import Meter
from bertds.monitor.notify import Notifier
from bertds.monitor.rank_speed import RankSpeed, compare_ranks
from bertds.monitor.trackers import check_trackers, start_trackers
from bertds.optim.lr_schedule import LearningRate
from bertds.system.early_stop import disarm, on_early_stop
from bertds.system.fault_points import reached
from bertds.system.heap_trim import Heap
from bertds.system.logs import log, start_logging
from bertds.system.processes import require_linux
from bertds.system.secrets import without_secrets
from bertds.training.auto_micro_batch import choose_micro_batch
from bertds.training.bad_step_guard import Guard
from bertds.training.clock import TrainingClock
from bertds.training.leaving import Leaving
from bertds.training.run import Collaborators, Run
from bertds.training.run_folder import RunFolder, environment
from bertds.training.sample_log import SampleLog
from bertds.training.settings import read_settings
from bertds.training.speedups import apply_speedups
from bertds.training.starting_point import (
    check_alike,
    check_moments,
    continue_run,
    start_weights,
    warn_of_other_data,
)
from bertds.training.store_waits import made_of
from bertds.training.validation import Validator
from bertds.training.will_it_fit import check_fits
from bertds.training.word_weights import use_word_weights

_FETCH_SECONDS = 3600.0


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
    require_linux()
    reached("run.open")
    place = find_rank_info()
    start_logging(place.is_main)
    if log_samples:
        assignments = [*assignments, "run.log_samples=true"]
    config, settings = read_settings(recipe, deepspeed_json, assignments)
    folder = RunFolder(config, place.is_main, settings.values)
    if folder.done:
        log.info(
            "%s: already done; set a larger schedule.total_steps to continue, or another run.dir "
            "to start again",
            folder.path,
        )
        return None
    if place.is_main:
        # A missing tracker package is reported now rather than after minutes of building.
        check_trackers(config, folder.path)
    with ExitStack() as closing:
        closing.callback(folder.open().close)
        leaving = closing.enter_context(Leaving())
        return _build(config, settings, place, folder, leaving, closing)


def _build(
    config: Config,
    settings: DeepSpeedSettings,
    place: RankInfo,
    folder: RunFolder,
    leaving: Leaving,
    closing: ExitStack,
) -> Run:
    """Build every part; register each with ``leaving`` or ``closing`` as soon as it is open."""
    for notice in settings.notices:
        log.info("%s", notice)
    # Before any long work, so that a peer lost while building is named too.
    leaving.heartbeat = heartbeat = watch_peers(config, place, folder)
    on_early_stop(leaving.stop_early)
    if config.checkpoint.copy_to:
        fetch_copy(config, place, folder)
    if not settings.finds_micro_batch:
        settings.batch_plan(place.world_size)  # report a wrong batch before anything is opened

    # Open the data, and check that the model fits its vocabulary and the memory.
    source = open_source(config.data, config.run.seed, split="train")
    held_out = open_held_out(config, source)
    if config.model.next_sentence and not source.has_pairs:
        log.warning(
            "%s: no next_sentence_labels, so the next-sentence head is not trained; set "
            "model.next_sentence=false in a new run",
            config.data.path,
        )
    vocab_size = source.tokenizer.vocab_size
    check_model_size(config.model, vocab_size)
    check_fits(config, settings, place, vocab_size)

    # Build the model and find its starting point: this run, init.from, or random weights.
    torch.manual_seed(config.run.seed)  # the same initial weights on every rank
    model = build_model(config.model, vocab_size)
    use_word_weights(model, config, source)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    start = start_weights(config, model, source.tokenizer, folder.checkpoints)
    check_moments(config, settings.optimizer.kind, start)
    if start is not None and start.is_own:
        folder.check_resumed(start.reader.manifest)

    # The micro batch is settled before layers are compiled or recorded for its shapes.
    settings = choose_micro_batch(model, config, settings, place)
    # Build the engine, and the parts that need it.
    plan = settings.batch_plan(place.world_size)
    ramp = BatchRamp.of(config.schedule, plan)
    leaving.engine = engine = build_engine(config, settings, plan, model)
    watch = listen_for_stops(config, folder)  # from here on a store may be waited for
    validator = None
    if held_out is not None:
        validator = made_of(
            held_out, engine, partial(Validator, config, held_out, engine), watch.reason
        )
    facts = facts_of(config, settings, place, source)
    # `leaving` abandons an unfinished save if this rank fails.
    leaving.checkpoints = checkpoints = Checkpoints(
        folder.path, config.checkpoint, engine, shapes, facts
    )

    # Upload what an earlier start saved but did not finish copying.
    if checkpoints.copies is not None:
        checkpoints.copies.catch_up(folder.checkpoints)

    # All ranks must have the same start and data. Then restore the state of the run.
    check_alike(engine, start, source)
    warn_of_other_data(start, source)
    reached("run.continue")
    state = continue_run(config, engine, start)
    checkpoints.continue_from(state.step)
    device = device_name(engine.device)
    folder.record(settings.values, source.tokenizer, device, state.step)

    # Only the main process sends notices and writes to trackers.
    notifier = None
    trackers: list[Any] = []
    if place.is_main:
        notifier = Notifier(config.notify, folder.path, config.run.name or folder.path.name)
        closing.callback(notifier.close)
        trackers = start_trackers(config, facts, folder.path, notifier, state.step)
    for tracker in trackers:
        closing.callback(tracker.close)
    # Stop requests, rank speeds and metrics continue from the restored state.
    agreement = build_agreement(engine, watch, state)
    rank_speed = compare_ranks(engine, agreement.waiting)
    metrics = build_metrics(config, settings, folder, engine, trackers, source, rank_speed)
    metrics.start(state)
    metrics.restore_window(state.window)

    # The loader starts at the restored position in the data.
    loader = made_of(
        source,
        engine,
        partial(
            BatchLoader,
            source,
            config.data,
            plan,
            place.rank,
            start=DataPosition(state.epoch, state.offset),
            seed=config.run.seed,
            pin=engine.device.type == "cuda",
            ramp=ramp,
            mask_rate=MaskRate.of(config.data, config.schedule.total_steps),
            first_step=state.step,
        ),
        watch.reason,
    )
    closing.callback(loader.close)
    parts = Collaborators(
        folder=folder,
        engine=engine,
        loader=loader,
        learning_rate=LearningRate(settings.optimizer.lr, config.schedule),
        metrics=metrics,
        checkpoints=checkpoints,
        agreement=agreement,
        guard=Guard(config.guard, engine),
        clock=TrainingClock(),
        validator=validator,
        sample_log=open_sample_log(folder, engine, state) if config.run.log_samples else None,
        heap=Heap() if engine.device.type == "cpu" else None,
        heartbeat=heartbeat,
        notifier=notifier,
    )
    announce(config, plan, state, engine, has_held_out=validator is not None)
    return Run(config, plan, state, parts, closing.pop_all())


def watch_peers(config: Config, place: RankInfo, folder: RunFolder) -> Heartbeat | None:
    """Meet the other processes and watch them from now on; None with a single process."""
    guard = config.guard
    if place.world_size == 1:
        return None
    reached("run.meet")
    store = meet_processes(guard.meeting_timeout_seconds)
    if guard.peer_timeout_seconds <= 0:
        return None
    return Heartbeat(
        place.rank,
        place.world_size,
        guard.peer_timeout_seconds,
        cast(KeyValueStore, store),  # torch's stubs lack Store.clone
        guard.progress_timeout_seconds,
        on_leave=folder.lock.release,
    ).start()


def fetch_copy(config: Config, place: RankInfo, folder: RunFolder) -> None:
    """Bring the newest checkpoint of ``checkpoint.copy_to`` into the run folder, if it is newer."""
    seconds = config.data.fetch_timeout_minutes * 60.0
    restored = partial(
        restore, config.checkpoint.copy_to, folder.checkpoints, seconds, folder.check_copy
    )
    # The limit covers a store that fails until its own timeout, then the transfer of a checkpoint.
    main_first(place, restored, seconds + _FETCH_SECONDS)


def open_held_out(config: Config, source: Source) -> Source | None:
    """Return the rows to validate on: ``validation.path``, else the training data's own split.

    Raises:
        DataError: there are none, and a setting requires them.
    """
    if config.validation.path:
        data = dataclasses.replace(config.data, path=config.validation.path)
        return open_source(data, config.run.seed, split="validation")
    held_out = source.held_out()
    if held_out is None:
        for key in ("stop_at_loss", "prompts"):
            value = getattr(config.validation, key)
            if value not in (None, ""):
                raise DataError(
                    f"validation.{key}={value}: {config.data.path} has no held-out data; set "
                    "validation.path or prepare the data with a validation split"
                )
    return held_out


def build_engine(
    config: Config, settings: DeepSpeedSettings, plan: BatchPlan, model: PreTrainingModel
) -> Engine:
    """Apply the recipe's speed settings to the model and hand it to DeepSpeed. Collective."""
    apply_speedups(model, config, settings)
    engine = Engine.create(model, settings, plan, seed=config.run.seed)
    if config.schedule.ema_decay:
        engine.keep_average()
    return engine


def facts_of(
    config: Config, settings: DeepSpeedSettings, place: RankInfo, source: Source
) -> dict[str, Any]:
    """Return everything that was resolved, for checkpoints and trackers."""
    tokenizer = source.tokenizer
    return {
        "model": {**to_dict(config.model), "vocab_size": tokenizer.vocab_size},
        "tokenizer": tokenizer.to_json(),
        "recipe": without_secrets(to_dict(config)),
        "deepspeed": settings.values,
        "data": source.describe(),
        "world_size": place.world_size,
        "versions": environment(),
    }


def device_name(device: torch.device) -> str:
    """Return ``cpu``, or the name of the GPU that trains."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def build_metrics(
    config: Config,
    settings: DeepSpeedSettings,
    folder: RunFolder,
    engine: Engine,
    trackers: list[Listener],
    source: Source,
    rank_speed: RankSpeed | None,
) -> Metrics:
    """Return the metrics of the run, with the meter of its operations per second."""
    meter = Meter(
        config.model,
        source.tokenizer.vocab_size,
        engine.world_size,
        device_peak(engine.device.type, settings.precision),
    )
    next_sentence = config.model.next_sentence and source.has_pairs
    return Metrics(
        folder.path, config.log.every_steps, next_sentence, engine, trackers, meter, rank_speed
    )


def listen_for_stops(config: Config, folder: RunFolder) -> StopRequests:
    """Listen for stop requests from now on."""
    job_seconds = seconds_left_of_job(config.run.stop_margin_minutes)
    # From here on a signal asks for a save instead of ending the process.
    watch = StopRequests(folder.path, config.run.max_hours, job_seconds).listen()
    disarm()
    return watch


def build_agreement(engine: Engine, watch: StopRequests, state: TrainState) -> Agreement:
    """Return the ranks' exchange at each step."""
    agreement = Agreement(engine, watch)
    agreement.hours = state.hours
    agreement.main_hours = state.main_hours
    agreement.tokens = state.tokens
    return agreement


def open_sample_log(folder: RunFolder, engine: Engine, state: TrainState) -> SampleLog:
    """Open this rank's record of samples. Collective: rank 0 goes first."""
    # Rank 0 goes first, since it removes stale records before the others write.
    own = SampleLog(folder.path, 0, state.step) if engine.rank == 0 else None
    engine.gather_objects(None)
    return own or SampleLog(folder.path, engine.rank, state.step)


def announce(
    config: Config, plan: BatchPlan, state: TrainState, engine: Engine, *, has_held_out: bool
) -> None:
    """Log what is about to be trained."""
    log.info(
        "%s: %s of %d samples = micro batch %d x %s x %s; sequence length %d; %s",
        f"resuming at step {state.step}" if state.step else "starting",
        f"{config.schedule.total_steps} steps"
        if config.schedule.clock_hours is None
        else f"{config.schedule.clock_hours:g} hours of steps",
        plan.global_batch_size,
        plan.micro_batch_size,
        count(plan.gradient_accumulation_steps, "accumulation step"),
        count(plan.world_size, "process", "processes"),
        config.data.sequence_length,
        engine.describe(),
    )
    if not has_held_out and engine.rank == 0:
        log.warning(
            "no held-out data; set validation.path or prepare the data with a validation split"
        )
