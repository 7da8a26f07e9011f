"""One training run: the methods that the loop in ``bertds/train.py`` calls.

``bertds/training/build.py`` creates a :class:`Run` and everything that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from bertds.checkpoint.save import Checkpoints
from bertds.checkpoint.train_state import TrainState
from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch, StepBatch
from bertds.data.loader import BatchLoader
from bertds.distributed.heartbeat import Heartbeat
from bertds.distributed.step_sync import Agreement
from bertds.distributed.stop_requests import StopRequests
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.interface import ModelOutput
from bertds.engine.weight_average import decay_at
from bertds.errors import StoreError
from bertds.monitor.metrics import Metrics
from bertds.monitor.notify import Event, Notifier
from bertds.optim.lr_schedule import LearningRate
from bertds.system.heap_trim import Heap
from bertds.system.logs import log
from bertds.training.bad_step_guard import Guard
from bertds.training.clock import TrainingClock
from bertds.training.run_folder import RunFolder
from bertds.training.sample_log import SampleLog
from bertds.training.store_waits import together, wait_for_batch
from bertds.training.validation import Validator

STOP_COPY_SECONDS = 120.0
"""How long a run that was stopped waits for the upload of its checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collaborators:
    """The parts of one run. Each has a single task; the run calls them in order."""

    folder: RunFolder
    engine: Engine
    loader: BatchLoader
    learning_rate: LearningRate
    metrics: Metrics
    checkpoints: Checkpoints
    agreement: Agreement
    guard: Guard
    clock: TrainingClock
    validator: Validator | None
    """None without held-out data."""
    sample_log: SampleLog | None
    """None unless ``run.log_samples`` is set."""
    heap: Heap | None
    """None on a GPU."""
    notifier: Notifier | None
    """None except on rank 0."""
    heartbeat: Heartbeat | None
    """None with a single process, or if peers are not watched."""


class Run:
    """A built run. Leaving its context closes everything.

    Args:
        config: the recipe.
        plan: how each step's samples are divided into micro batches.
        state: the state of training.
        parts: the collaborators.
        closing: closes them in reverse order of creation.
    """

    def __init__(
        self,
        config: Config,
        plan: BatchPlan,
        state: TrainState,
        parts: Collaborators,
        closing: ExitStack,
    ) -> None:
        self.config = config
        self.plan = plan
        self.state = state
        self.parts = parts
        self.engine = parts.engine
        self.metrics = parts.metrics
        self.agreement = parts.agreement
        self.learning_rate = parts.learning_rate
        self._closing = closing
        self._batches: Iterator[StepBatch] = iter(parts.loader)
        self._may_stall = parts.loader.may_stall
        self._first_step = state.step

    @property
    def stall_seconds(self) -> float:
        """Seconds that training has waited for the loader."""
        return self.parts.loader.stall_seconds

    def is_finished(self) -> bool:
        """Whether the last step is done, the clock budget spent, or the wanted loss reached."""
        schedule, target = self.config.schedule, self.config.validation.stop_at_loss
        best = self.state.best_mlm_loss
        if target is not None and best is not None and best <= target:
            return True
        if schedule.clock_hours is not None and self.state.hours >= schedule.clock_hours:
            return True
        return self.state.step >= schedule.total_steps

    def wait_for_batch(self) -> bool:
        """Wait, together with the other ranks, until each has the next batch.

        Local data is always ready, so there is no exchange for it.

        Returns:
            False if the run must stop instead, because a store gave no data.
        """
        # The ranks exchanged their readiness with the stop requests of the last step.
        if not self._may_stall or self.agreement.batches_ready:
            return True
        loader, waits = self.parts.loader, self._wait_for_data
        return wait_for_batch(self.engine, loader, self.agreement, waits)

    def next_batch(self) -> StepBatch:
        """Return this rank's part of the next optimizer step."""
        self._enter("data")
        batch = next(self._batches)
        self._enter("step")
        self.engine.use_batch(batch.plan)
        if self.parts.sample_log is not None:
            self.parts.sample_log.write(self.state.step + 1, batch.samples)
        return batch

    def measure(self, output: ModelOutput, micro_batch: MicroBatch) -> None:
        """Record one micro batch's losses without waiting for the device."""
        self._enter("step")
        masked, rows = micro_batch.masked, micro_batch.rows
        self.metrics.add(output, masked, rows)
        self.parts.guard.watch(output, masked, rows)

    def update(self, batch: StepBatch) -> None:
        """Update the weights unless the gradient is bad, and count the step.

        Raises:
            BertdsError: too many steps in a row made no update.
            InUseError: another process has taken over the run folder.
        """
        state, parts = self.state, self.parts
        limit = parts.guard.norm_limit(state)
        # Posted before the optimizer runs, so that the exchange overlaps with its work.
        if self.metrics.rank_speed is not None:
            self.metrics.rank_speed.end_step(batch.real_tokens)
        self.agreement.ask(not self._may_stall or parts.loader.has_batch())
        self._enter("step")
        with self.metrics.optimizer.timed():
            applied = self.engine.step(limit)
            # The average decays by updates, not by steps: a skipped step changes no weight.
            decay = self.config.schedule.ema_decay
            if applied and decay:
                self.engine.update_average(decay_at(decay, state.step - state.skipped_steps))
        # If another process has taken over the folder, fail before anything is written.
        parts.folder.lock.check(at_most_every=1.0)
        # A skipped step counts too: its samples are used up.
        state.step += 1
        state.samples += batch.plan.global_batch_size
        state.epoch, state.offset = batch.next.epoch, batch.next.offset
        # Hours and tokens are those that all ranks agreed on, so that all stop at the same step.
        self.agreement.main_hours += parts.clock.lap_hours()
        self.agreement.read()
        state.tokens, state.hours = self.agreement.tokens, self.agreement.hours
        self.metrics.masked = self.agreement.masked
        parts.guard.judge(state, batch.samples, applied, limit)
        if parts.heap is not None:
            parts.heap.look()
        if parts.heartbeat is not None:
            parts.heartbeat.progress.step_done(state.step)

    def _wait_for_data(self) -> None:
        """Report to the other ranks that this one is alive and waiting for a store."""
        self._enter("data")

    def _enter(self, activity: str) -> None:
        """Report to the other ranks what this one is doing; see distributed/progress.py."""
        if self.parts.heartbeat is not None:
            self.parts.heartbeat.progress.enter(activity)

    def validate_before_training(self) -> None:
        """Validate with the initial weights if the recipe asks for it."""
        if self.config.validation.before_training and self.state.step == 0:
            self.validate()

    def validate_if_due(self) -> None:
        """Validate when the step is a multiple of ``validation.every_steps``."""
        every = self.config.validation.every_steps
        if every and self.state.step % every == 0:
            self.validate()

    def validate(self) -> bool:
        """Validate, unless that was just done.

        Returns:
            Whether it is done; False if a store did not give the held-out rows in time.
        """
        state, validator = self.state, self.parts.validator
        if validator is None or state.validated_step == state.step:
            return True
        if state.step > self._first_step:
            validator.source.wait_for_repair()
        # Fetch held-out rows first: no rank may wait for a store inside a collective operation.
        try:
            with self.metrics.pause():
                validator.prepare(self._wait_for_data, self.agreement.watch.reason)
        except StoreError as error:
            self.agreement.stop(str(error))
            return False
        state.validated_step = state.step
        self._enter("validation")
        # Score the averaged weights if the recipe keeps an average.
        with self.metrics.pause(), self.engine.averaged():
            scores, prompts = validator.score(), validator.prompts()
        self._enter("step")
        if state.best_mlm_loss is None or scores["mlm_loss"] < state.best_mlm_loss:
            state.best_mlm_loss, state.best_step = scores["mlm_loss"], state.step
        line = {"step": state.step, "split": "validation", **scores}
        self.metrics.write({**line, "prompts": prompts} if prompts else line)
        return True

    def save_if_due(self, force: bool) -> None:
        """Save a checkpoint when it is due, when it is the best so far, or when asked to."""
        state, cadence = self.state, self.config.checkpoint
        if state.step == self._first_step and not self.is_finished():
            return  # stopped before the first step: there is nothing new to save
        due = cadence.every_steps and state.step % cadence.every_steps == 0
        best = cadence.keep_best and state.best_step == state.step
        if not (force or due or best):
            return
        self._enter("save")
        with self.metrics.pause():
            # A resumed run continues the clock and the open window of the metrics.
            state.main_hours = self.agreement.main_hours
            state.window = self.metrics.window()
            self.parts.folder.lock.check()
            self.parts.checkpoints.save(state, wait=force)
        self._enter("step")

    def close(self, finished: bool) -> None:
        """Report how the run ended; write ``DONE`` if the last step is done.

        Raises:
            StoreError: on every rank, if ``checkpoint.copy_to`` lacks a saved checkpoint.
        """
        # A signal during the closing work would otherwise turn success into a failure.
        StopRequests.ignore_signals()
        state, folder = self.state, self.parts.folder
        if self.config.checkpoint.copy_to:
            # A stopped run waits less: its machine may be about to be taken away.
            most = self.config.data.fetch_timeout_minutes * 60.0 if finished else STOP_COPY_SECONDS
            copied = partial(self.parts.checkpoints.wait_copied, most)
            together(self.engine, copied, self._wait_for_data)
        if finished:
            folder.lock.check()
            facts: dict[str, float] = {"step": state.step, "samples": state.samples}
            if state.best_mlm_loss is not None:
                facts["best_mlm_loss"] = state.best_mlm_loss
            folder.finish(facts)
            self._tell("done", f"done at step {state.step}")
        else:
            log.info(
                "stopped at step %d (%s); everything is saved; run the same command again to "
                "resume",
                state.step,
                self.agreement.reason_to_stop(),
            )
            reason = self.agreement.reason_to_stop()
            self._tell("stopped", f"stopped at step {state.step} ({reason}), everything saved")

    def _tell(self, event: Event, text: str) -> None:
        if self.parts.notifier is not None:
            self.parts.notifier.send(event, self.state.step, text)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._tell("failed", f"failed at step {self.state.step}: {error}")
        self._closing.__exit__(kind, error, traceback)
